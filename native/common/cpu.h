// What this processor and kernel let us use.
#pragma once

#include <cstdint>

namespace baseload {

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C
  bool avxvnni = false;      // + VPDPBUSD on 256-bit registers
  bool avx512vnni = false;   // F, BW, VL, DQ and VNNI
  bool avx512 = false;       // + BF16
  bool amx_int8 = false;     // tiles, permission for them granted by the kernel
  bool amx_bf16 = false;
  bool amx_refused = false;  // tiles are there and enabled, but the kernel did not permit them to this process
};

// Asked once; asking also asks the kernel for the use of tiles.
const CpuFeatures& cpu_features();

// What is asked: the tests answer in a processor's place. `cpuid` gives EAX, EBX, ECX, EDX (zeros for a leaf that is not
// there), `enabled` XCR0, `permit` whether tiles may be used, asking for it; it is called at most once.
struct CpuQuestions {
  void (*cpuid)(uint32_t leaf, uint32_t part, uint32_t found[4]);
  uint64_t (*enabled)();
  bool (*permit)();
};
CpuFeatures features_of(const CpuQuestions& ask);

}  // namespace baseload
