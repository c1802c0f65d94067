// Attention alone, without XLA: how long one call over a filled cache takes. Called from Python (ctypes).
#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <vector>

#include "attention/isa.h"
#include "attention/memory.h"
#include "attention/step.h"
#include "common/ffi.h"
#include "common/pool.h"

namespace baseload {
namespace {

// With one thread its processor time, which neighbours disturb little; with more, time that passes.
double clock_s() {
  if (threads() > 1) return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Noise {
  uint32_t state = 1;
  float next() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
};

}  // namespace
}  // namespace baseload

// Seconds of one call, the best of `rounds`: `rows` new rows from position `start` on of each of `sequences`.
BASELOAD_EXPORT double bl_attention_speed(const char* isa, int64_t heads, int64_t kv_heads, int64_t dim, int32_t int8,
                                          int64_t sequences, int64_t rows, int64_t start, int64_t rounds) {
  using namespace baseload;
  constexpr int64_t kBlockTokens = 16;
  const int64_t blocks = (start + rows + kBlockTokens - 1) / kBlockTokens, width = (heads + 2 * kv_heads) * dim;
  StepCall call{};
  call.layout = make_layout(heads, kv_heads, dim, kBlockTokens, 1, int8 != 0);
  call.isa = &attention_isa(isa);
  call.eps = 1e-6f;
  call.window = int64_t{1} << 30;
  Aligned memory;
  call.cache = memory.bytes(sequences * blocks * call.layout.block_bytes);
  std::vector<int32_t> tables(static_cast<size_t>(sequences * blocks));
  for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i);
  const int64_t most = start > rows ? start : rows;
  Noise noise;
  std::vector<float> qkv(static_cast<size_t>(most * sequences * width));
  std::vector<float> angles(static_cast<size_t>(most * sequences * dim), 0.70710678f), out;
  out.resize(static_cast<size_t>(most * sequences * heads * dim));
  for (float& x : qkv) x = noise.next();
  call.qkv = qkv.data();
  call.angles = angles.data();
  call.out = out.data();
  const auto step = [&](int64_t from, int64_t count) {
    call.rows = count * sequences;
    call.spans.clear();
    for (int64_t s = 0; s < sequences; ++s) call.spans.push_back({s * count, count, from, tables.data() + s * blocks});
    attend_step(call);
  };
  if (start > 0) step(0, start);
  double best = 1e30;
  for (int64_t i = 0; i < rounds; ++i) {
    const double begin = clock_s();
    step(start, rows);
    const double passed = clock_s() - begin;
    best = passed < best ? passed : best;
  }
  return best;
}
