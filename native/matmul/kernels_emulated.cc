// The tile kernels on emulated tiles: for tests on processors without AMX, never for use.
#include "matmul/amx_body.h"
#include "matmul/portable_ops.h"

namespace baseload {

const Kernels* kernels_emulated() { return AmxImpl<EmulatedTiles, Portable, &kernels_portable>::table("emulated"); }

}  // namespace baseload
