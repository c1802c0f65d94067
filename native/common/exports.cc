// What Python calls directly (ctypes), and the smallest handler, by which a build is tried.
#include <cstdint>

#include "common/cpu.h"
#include "common/ffi.h"
#include "common/pool.h"
#include "matmul/check.h"

BASELOAD_EXPORT void bl_set_threads(int32_t count) { baseload::set_threads(count); }

BASELOAD_EXPORT int32_t bl_threads() { return baseload::threads(); }

// Bits: 0 avx2, 1 avxvnni, 2 avx512, 3 amx (the processor has it, and our kernels on it give the right results),
// 4 the processor has AMX, 5 avx512vnni, 6 it has AMX, but the kernel does not permit it to this process.
BASELOAD_EXPORT uint32_t bl_features() {
  const baseload::CpuFeatures& cpu = baseload::cpu_features();
  return uint32_t{cpu.avx2} | uint32_t{cpu.avxvnni} << 1 | uint32_t{cpu.avx512} << 2 |
         uint32_t{baseload::amx_works()} << 3 | uint32_t{cpu.amx_int8 && cpu.amx_bf16} << 4 |
         uint32_t{cpu.avx512vnni} << 5 | uint32_t{cpu.amx_refused} << 6;
}

namespace {

constexpr int64_t kChunk = 4096;

ffi::Error add_one(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  const float* from = x.typed_data();
  float* to = y->typed_data();
  const int64_t count = static_cast<int64_t>(x.element_count());
  baseload::parallel_for((count + kChunk - 1) / kChunk, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kChunk < count ? (task + 1) * kChunk : count;
    for (int64_t i = task * kChunk; i < end; ++i) to[i] = from[i] + 1.0f;
  });
  return ffi::Error::Success();
}

}  // namespace

BASELOAD_FFI(bl_add_one, add_one, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
