#include "attention/check.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "attention/memory.h"
#include "attention/step.h"
#include "common/cpu.h"

namespace baseload {
namespace {

#if defined(__x86_64__)

constexpr int64_t kRows = 150, kHeads = 4, kDim = 64, kBlockTokens = 16, kBlocks = (kRows + kBlockTokens - 1) / kBlockTokens;

// One prompt and the row after it, through one instruction set.
std::vector<float> run(const AttentionIsa& isa, bool int8) {
  StepCall call{};
  call.layout = make_layout(kHeads, kHeads / 2, kDim, kBlockTokens, 1, int8);
  call.isa = &isa;
  call.window = int64_t{1} << 30;
  const int64_t width = 2 * kHeads * kDim;
  std::vector<float> qkv(kRows * width), angles(kRows * kDim, 0.70710678f), out(kRows * kHeads * kDim);
  uint32_t noise = 1;
  for (float& x : qkv) {
    noise = noise * 1664525u + 1013904223u;
    x = static_cast<float>(noise >> 8) / 8388608.0f - 1.0f;
  }
  int32_t table[kBlocks];
  for (int64_t i = 0; i < kBlocks; ++i) table[i] = static_cast<int32_t>(i);
  Aligned cache;
  call.cache = cache.bytes(kBlocks * call.layout.block_bytes);
  for (const int64_t first : {int64_t{0}, kRows - 1}) {
    const int64_t rows = first == 0 ? kRows - 1 : 1;
    call.qkv = qkv.data() + first * width;
    call.angles = angles.data() + first * kDim;
    call.out = out.data() + first * kHeads * kDim;
    call.rows = rows;
    call.spans.assign(1, {0, rows, first, table});
    attend_step(call);
  }
  return out;
}

bool check() {
  const CpuFeatures& cpu = cpu_features();
  if (!cpu.amx_int8 || !cpu.amx_bf16) return false;
  for (const bool int8 : {false, true}) {
    const std::vector<float> ours = run(kAttentionAmx, int8), theirs = run(kAttentionScalar, int8);
    for (size_t i = 0; i < ours.size(); ++i)
      if (!(std::fabs(ours[i] - theirs[i]) <= 0.02f)) return false;
  }
  return true;
}

#else

bool check() { return false; }

#endif

}  // namespace

bool attention_tiles_work() {
  static const bool works = check();
  return works;
}

}  // namespace baseload
