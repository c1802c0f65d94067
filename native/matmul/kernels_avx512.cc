// AVX-512 with VNNI and BF16.
#include "matmul/avx512_ops.h"
#include "matmul/impl.h"

namespace baseload {

const Kernels* kernels_avx512() { return Impl<Avx512>::table("avx512"); }

}  // namespace baseload
