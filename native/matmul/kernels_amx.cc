// AMX tiles for blocks of rows, AVX-512 for the rest.
#include "matmul/amx_body.h"
#include "matmul/avx512_ops.h"

namespace baseload {

const Kernels* kernels_amx() { return AmxImpl<RealTiles, Avx512, &kernels_avx512>::table("amx"); }

}  // namespace baseload
