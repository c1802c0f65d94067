#include "common/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace baseload {
namespace {

enum { kA, kB, kC, kD };

struct Answer {
  uint32_t registers[4] = {};
  Answer(const CpuQuestions& ask, uint32_t leaf, uint32_t part) { ask.cpuid(leaf, part, registers); }
  bool bit(int which, int index) const { return registers[which] >> index & 1; }
};

// The tiles our kernels configure: palette 1 with eight of 16 rows of 64 bytes, products over 16 rows of B. A hypervisor
// that hides these leaves (zeros) is not asked further: the processors that there are have no others.
bool tiles_fit(const CpuQuestions& ask) {
  const Answer palettes(ask, 0x1d, 0), one(ask, 0x1d, 1), unit(ask, 0x1e, 0);
  const uint32_t most_palette = palettes.registers[kA], sizes = one.registers[kB], rows = one.registers[kC] & 0xffff;
  const bool tiles = most_palette >= 1 && (sizes & 0xffff) == 64 && sizes >> 16 >= 8 && rows >= 16;
  const uint32_t most = unit.registers[kB];
  const bool products = (most & 0xff) >= 16 && (most >> 8 & 0xffff) >= 64;
  return (tiles || (most_palette == 0 && sizes == 0)) && (products || most == 0);
}

#if defined(__x86_64__)

// Linux, arch/x86/include/uapi/asm/prctl.h
constexpr long kArchGetXcompPerm = 0x1022;
constexpr long kArchReqXcompPerm = 0x1023;
constexpr long kXfeatureXtiledata = 18;

void real_cpuid(uint32_t leaf, uint32_t part, uint32_t found[4]) {
  found[kA] = found[kB] = found[kC] = found[kD] = 0;
  __get_cpuid_count(leaf, part, &found[kA], &found[kB], &found[kC], &found[kD]);  // looks at the highest leaf first
}

uint64_t real_enabled() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// For the whole process: every thread that there is or will be, and children of fork; a new program asks again. Refused
// by kernels before 5.16 (EINVAL), by sandboxes, and where any thread has a signal stack too small for a frame with
// tiles (ENOSPC). A sandbox that answers yes to calls it does not know is found out by asking what is permitted.
bool real_permit() {
  if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) != 0) return false;
  uint64_t permitted = 0;
  return syscall(SYS_arch_prctl, kArchGetXcompPerm, &permitted) == 0 && (permitted >> kXfeatureXtiledata & 1);
}

CpuFeatures ask_once() { return features_of({real_cpuid, real_enabled, real_permit}); }

#else

CpuFeatures ask_once() { return {}; }

#endif

}  // namespace

CpuFeatures features_of(const CpuQuestions& ask) {
  CpuFeatures found;
  const Answer basic(ask, 1, 0);
  const bool osxsave = basic.bit(kC, 27), fma = basic.bit(kC, 12), f16c = basic.bit(kC, 29);
  if (!osxsave) return found;  // XGETBV is not to be had
  const uint64_t state = ask.enabled();
  const Answer seven(ask, 7, 0);
  const Answer more(ask, seven.registers[kA] >= 1 ? 7 : 0xffffffff, 1);
  // XCR0: registers that the system saves, so that they may be used. 17 and 18: configuration and data of tiles.
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  found.avx2 = ymm && fma && f16c && seven.bit(kB, 5) && seven.bit(kB, 8);
  found.avxvnni = found.avx2 && more.bit(kA, 4);
  const bool f = seven.bit(kB, 16), dq = seven.bit(kB, 17), bw = seven.bit(kB, 30), vl = seven.bit(kB, 31);
  found.avx512vnni = found.avx2 && zmm && f && dq && bw && vl && seven.bit(kC, 11);
  found.avx512 = found.avx512vnni && more.bit(kA, 5);
  const bool int8 = seven.bit(kD, 25), bf16 = seven.bit(kD, 22);
  if (found.avx512 && tiles && seven.bit(kD, 24) && (int8 || bf16) && tiles_fit(ask)) {
    if (ask.permit()) {
      found.amx_int8 = int8;
      found.amx_bf16 = bf16;
    } else {
      found.amx_refused = true;
    }
  }
  return found;
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = ask_once();
  return found;
}

}  // namespace baseload
