// AVX-512 with VNNI, without BF16.
#include "matmul/avx512_ops.h"
#include "matmul/impl.h"

namespace baseload {

const Kernels* kernels_avx512vnni() { return Impl<Avx512>::table("avx512vnni"); }

}  // namespace baseload
