// What this processor and kernel let us use.
#pragma once

namespace baseload {

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C
  bool avxvnni = false;      // + VPDPBUSD on 256-bit registers
  bool avx512vnni = false;   // F, BW, VL, DQ and VNNI
  bool avx512 = false;       // + BF16
  bool amx_int8 = false;     // tiles, permission for them granted by the kernel
  bool amx_bf16 = false;
};

// Asked once; asking also asks the kernel for the use of tiles.
const CpuFeatures& cpu_features();

}  // namespace baseload
