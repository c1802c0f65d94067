// The kernels in plain C++, for processors without the instruction sets we know and as the tests' second opinion.
#include "matmul/portable_ops.h"
#include "matmul/impl.h"

namespace baseload {

const Kernels* kernels_portable() { return Impl<Portable>::table("portable"); }

}  // namespace baseload
