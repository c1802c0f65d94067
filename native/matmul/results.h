// From sums to what is written: scales, bias, residual, SwiGLU.
#pragma once

#include "matmul/kernels.h"
#include "matmul/vectors.h"

namespace baseload {
namespace {

// Writes one row's sums of `panels` neighbouring panels, the first of them `p`.
template <int P>
BL_INLINE void finish(const Block& b, int64_t row, int64_t p, const F16* sums) {
  F16 v[P];
#pragma GCC unroll 4
  for (int j = 0; j < P; ++j) v[j] = sums[j];
  if (b.bias) {
#pragma GCC unroll 4
    for (int j = 0; j < P; ++j) v[j] = v[j] + load_as<F16>(b.bias + (p + j) * kPanel);
  }
  float* out = b.out + row * b.ldo;
  if (b.epilogue == Epilogue::kSwiglu) {
    if (P == 1) {  // gate and up come one after the other: the gate waits where the result will stand
      const int64_t at = p / 2 * kPanel, count = b.columns - at;
      store_part(out + at, p % 2 ? swiglu_of(load_part(out + at, count), v[0]) : v[0], count);
      return;
    }
    for (int j = 0; j + 1 < P; j += 2) {
      const int64_t at = (p + j) / 2 * kPanel;
      store_part(out + at, swiglu_of(v[j], v[j + 1]), b.columns - at);
    }
    return;
  }
#pragma GCC unroll 4
  for (int j = 0; j < P; ++j) {
    const int64_t at = (p + j) * kPanel, count = b.columns - at;
    if (b.epilogue == Epilogue::kResidual) {
      v[j] = load_part(b.residual + row * b.ldo + at, count) + v[j];
    }
    store_part(out + at, v[j], count);
  }
}

// Integer sums (with the weights' offset still in them) to floats.
template <int P>
BL_INLINE void finish_int(const Block& b, int64_t row, int64_t p, const I16* sums) {
  F16 v[P];
  const I16 offset = splat(128 * b.a.sum[row]);
  const F16 scale = splat(b.a.scale[row]);
#pragma GCC unroll 4
  for (int j = 0; j < P; ++j) v[j] = to_float(sums[j] - offset) * scale * load_as<F16>(b.w.scale + (p + j) * kPanel);
  finish<P>(b, row, p, v);
}

}  // namespace
}  // namespace baseload
