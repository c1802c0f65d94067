// Which instruction sets are taken, for processors and kernels that answer as given; and for this one, as Linux lists it.
#include "common/cpu.h"

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "tests/check.h"

namespace {

using namespace baseload;

struct Processor {
  uint32_t basic_c = 1u << 27 | 1u << 12 | 1u << 29;                         // OSXSAVE, FMA, F16C
  uint32_t seven_a = 1, seven_b = 1u << 5 | 1u << 8, seven_c = 0, seven_d = 0;  // AVX2, BMI2
  uint32_t more_a = 0;
  uint32_t palettes = 1, row_bytes = 64, tile_count = 8, rows = 16, most_k = 16, most_n = 64;
  uint64_t state = 0x7;
  bool permits = true;
  int asked_permission = 0;
} processor;

void cpuid(uint32_t leaf, uint32_t part, uint32_t found[4]) {
  const Processor& p = processor;
  std::memset(found, 0, 16);
  const auto put = [&](uint32_t a, uint32_t b, uint32_t c, uint32_t d) { found[0] = a, found[1] = b, found[2] = c, found[3] = d; };
  if (leaf == 1) put(0, 0, p.basic_c, 0);
  if (leaf == 7 && part == 0) put(p.seven_a, p.seven_b, p.seven_c, p.seven_d);
  if (leaf == 7 && part == 1) put(p.more_a, 0, 0, 0);
  if (leaf == 0x1d && part == 0) put(p.palettes, 0, 0, 0);
  if (leaf == 0x1d && part == 1) put(1024u << 16 | 8192u, p.tile_count << 16 | p.row_bytes, p.rows, 0);
  if (leaf == 0x1e && part == 0) put(0, p.most_n << 8 | p.most_k, 0, 0);
}

CpuFeatures ask(const Processor& given) {
  processor = given;
  const CpuFeatures found = features_of({cpuid, [] { return processor.state; }, [] {
                                           ++processor.asked_permission;
                                           return processor.permits;
                                         }});
  CHECK(processor.asked_permission <= 1, "asked %d times", processor.asked_permission);
  return found;
}

Processor tiles() {  // Sapphire Rapids
  Processor p;
  p.seven_b |= 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  p.seven_c = 1u << 11;
  p.seven_d = 1u << 22 | 1u << 24 | 1u << 25;
  p.more_a = 1u << 4 | 1u << 5;
  p.state = 0x602e7;
  return p;
}

// Everything up to AVX-512 with BF16, and no tiles.
void only_avx512(const Processor& given, bool refused, int asked, const char* why) {
  const CpuFeatures found = ask(given);
  CHECK(found.avx512 && found.avx512vnni && found.avxvnni && found.avx2, "%s", why);
  CHECK(!found.amx_int8 && !found.amx_bf16 && found.amx_refused == refused, "%s", why);
  CHECK(processor.asked_permission == asked, "%s: asked %d times", why, processor.asked_permission);
}

void tiles_need_processor_system_and_permission() {
  const CpuFeatures found = ask(tiles());
  CHECK(found.amx_int8 && found.amx_bf16 && !found.amx_refused && found.avx512, "all is there");
  Processor p = tiles();
  p.permits = false;
  only_avx512(p, true, 1, "the kernel refuses");
  p = tiles();
  p.state &= ~0x40000ull;
  only_avx512(p, false, 0, "the system does not save the tiles' data");
  p = tiles();
  p.state &= ~0x20000ull;
  only_avx512(p, false, 0, "the system does not save the tiles' configuration");
  p = tiles();
  p.seven_d &= ~(1u << 24);
  only_avx512(p, false, 0, "no tiles");
  p = tiles();
  p.seven_d = 1u << 24;
  only_avx512(p, false, 0, "tiles without products");
  for (uint32_t Processor::*const size : {&Processor::palettes, &Processor::row_bytes, &Processor::tile_count, &Processor::rows,
                                          &Processor::most_k, &Processor::most_n}) {
    p = tiles();
    p.*size /= 2;
    only_avx512(p, false, 0, "tiles of another size");
  }
  p = tiles();
  p.palettes = p.row_bytes = p.tile_count = p.rows = p.most_k = p.most_n = 0;
  CHECK(ask(p).amx_int8, "a hypervisor that hides the tiles' size");
  p = tiles();
  p.seven_d &= ~(1u << 25);
  const CpuFeatures half = ask(p);
  CHECK(!half.amx_int8 && half.amx_bf16, "bfloat16 alone");
}

void vectors_need_what_they_say() {
  Processor p;
  CpuFeatures found = ask(p);
  CHECK(found.avx2 && !found.avxvnni && !found.avx512vnni && !found.avx512, "AVX2");
  p.state = 0x3;
  CHECK(!ask(p).avx2, "wide registers are not saved");
  p = tiles();
  p.basic_c &= ~(1u << 27);
  found = ask(p);
  CHECK(!found.avx2 && !found.avx512 && !found.amx_int8, "without OSXSAVE nothing is asked");
  p = tiles();
  p.state = 0x7;
  found = ask(p);
  CHECK(found.avx2 && found.avxvnni && !found.avx512vnni && !found.amx_int8, "512-bit registers are not saved");
  p = tiles();
  p.seven_a = 0;  // no second part of leaf 7: BF16 and AVX-VNNI are not to be known
  found = ask(p);
  CHECK(found.avx512vnni && !found.avx512 && !found.avxvnni && !found.amx_int8, "leaf 7 has one part");
  p = tiles();
  p.more_a &= ~(1u << 5);
  found = ask(p);
  CHECK(found.avx512vnni && !found.avx512 && !found.amx_int8, "no BF16");
}

bool listed(const std::string& flags, const char* name) { return flags.find(" " + std::string(name) + " ") != std::string::npos; }

void this_processor_is_as_linux_lists_it() {
  std::ifstream file("/proc/cpuinfo");
  std::string line, flags;
  while (flags.empty() && std::getline(file, line)) {
    if (line.rfind("flags", 0) == 0) flags = line + " ";
  }
  if (flags.empty()) return;  // not an x86 processor, or no such file
  const CpuFeatures& found = cpu_features();
  CHECK(found.avx2 == (listed(flags, "avx2") && listed(flags, "fma") && listed(flags, "f16c") && listed(flags, "bmi2")), "avx2");
  if (listed(flags, "avx512_vnni") && listed(flags, "avx512_bf16")) CHECK(found.avx512vnni && found.avx512, "avx512");
  if (!listed(flags, "amx_tile")) CHECK(!found.amx_int8 && !found.amx_bf16 && !found.amx_refused, "amx");
}

}  // namespace

int main() {
  tiles_need_processor_system_and_permission();
  vectors_need_what_they_say();
  this_processor_is_as_linux_lists_it();
  return failures != 0;
}
