// AVX-512 with VNNI and BF16.
#include "matmul/avx512_ops.h"

namespace baseload {

const Kernels* kernels_avx512() { return Impl<Avx512>::table("avx512"); }

}  // namespace baseload
