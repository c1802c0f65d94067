// What this machine can do at most, measured; and the kernels alone, without XLA. Called from Python (ctypes).
#include <atomic>
#include <chrono>
#include <cstdint>

#include "common/ffi.h"
#include "common/pool.h"
#include "matmul/matmul.h"

namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int64_t kReadTask = 1 << 20;
constexpr int64_t kPeakTasks = 32;  // for each thread: who is late does fewer

}  // namespace

// Bytes/s that all threads together read of `bytes` at `from`, once; 0 where the instruction set is not to be had.
BASELOAD_EXPORT double bl_read_speed(int32_t isa, const uint8_t* from, int64_t bytes) {
  const baseload::Kernels* kernels = baseload::kernels_for(static_cast<baseload::Isa>(isa));
  if (!kernels) return 0.0;
  static std::atomic<uint64_t> sink;
  const double start = now_s();
  baseload::parallel_for(bytes / kReadTask, [&](int64_t task, int) {
    const uint64_t seen = kernels->read(from + task * kReadTask, kReadTask);
    if (seen == 1) sink.store(seen);
  });
  return static_cast<double>(bytes / kReadTask * kReadTask) / (now_s() - start);
}

// Multiply-adds/s of all threads together, on registers alone; 0 where the instruction set is not to be had.
BASELOAD_EXPORT double bl_peak_speed(int32_t isa, int32_t scheme, int64_t rounds) {
  const baseload::Kernels* kernels = baseload::kernels_for(static_cast<baseload::Isa>(isa));
  if (!kernels) return 0.0;
  const int64_t tasks = kPeakTasks * baseload::threads();
  const double start = now_s();
  baseload::parallel_for(tasks, [&](int64_t, int) { kernels->peak(static_cast<baseload::Scheme>(scheme), rounds); });
  const double passed = now_s() - start;
  return static_cast<double>(tasks * kernels->peak(static_cast<baseload::Scheme>(scheme), 1) * rounds) / passed;
}

// One product without XLA: x[rows][k] with the packed matrix at `base`, to out[rows][columns]; 0 for success.
BASELOAD_EXPORT int32_t bl_product(int32_t isa, int32_t scheme, int64_t n, int64_t k, int64_t group,
                                   const uint8_t* base, const float* x, int64_t rows, float* out, int64_t columns,
                                   float eps, int32_t swiglu) {
  baseload::Product p;
  p.kernels = baseload::kernels_for(static_cast<baseload::Isa>(isa));
  if (!p.kernels || scheme < 0 || scheme > 2) return 1;
  p.w = baseload::matrix_at(base, static_cast<baseload::Scheme>(scheme), n, k, group);
  p.x = x;
  p.rows = rows;
  p.eps = eps;
  p.epilogue = swiglu ? baseload::Epilogue::kSwiglu : baseload::Epilogue::kPlain;
  p.out = out;
  p.columns = columns;
  baseload::multiply(p);
  return 0;
}
