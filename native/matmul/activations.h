// Rows of activations as a product wants them: norm, then quantization to int8 per row, or rounding to bfloat16.
#pragma once

#include "matmul/kernels.h"
#include "matmul/vectors.h"

namespace baseload {
namespace {

constexpr float kTiny = 1e-30f;  // a row whose largest value is below this is taken as zero

struct RowScale {
  float inverse_rms = 1.0f;
  bool normed = false;
};

BL_INLINE F16 row_vector(const float* x, const float* norm, const RowScale& r, int64_t at, int64_t k) {
  F16 v = load_part(x + at, k - at);
  if (r.normed) {
    v = v * splat(r.inverse_rms);
    if (norm) v = v * load_part(norm + at, k - at);
  }
  return v;
}

BL_INLINE RowScale row_scale(const float* x, float eps, int64_t k) {
  RowScale r;
  if (eps < 0.0f) return r;
  F16 total = splat(0.0f);
  for (int64_t at = 0; at < k; at += 16) {
    const F16 v = load_part(x + at, k - at);
    total = total + v * v;
  }
  r.normed = true;
  r.inverse_rms = 1.0f / std::sqrt(sum_lanes(total) / static_cast<float>(k) + eps);
  return r;
}

template <bool kFloats>
BL_INLINE void round_bf16(const float* x, const float* norm, float eps, int64_t k, const Activations& a, int64_t row) {
  const RowScale r = row_scale(x, eps, k);
  for (int64_t at = 0; at < a.kp; at += 16) {
    const F16 v = at < k ? row_vector(x, norm, r, at, k) : splat(0.0f);
    const U16 bits = reinterpret_cast<U16>(v);
    const U16 rounded = unless_nan(v, (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, 0x7fc0u);
    if (kFloats) {
      store_as(a.floats + row * a.lda + at, rounded << 16);
    } else {
      store_as(a.bf16 + row * a.lda + at, narrow16(rounded));
    }
  }
}

#if defined(__AVX2__) && !defined(__AVX512F__)

// The same as below for K that needs no padding, in 256-bit registers by hand: GCC 12 takes 64-byte vectors through
// memory (measured: 3.7 µs for a row of 1,024 values).
BL_INLINE void quantize_whole(const float* x, const float* norm, float eps, int64_t k, bool blocks,
                              const Activations& a, int64_t row) {
  float inverse_rms = 1.0f;
  alignas(32) float lane[8];
  const auto sum_of = [&](__m256 v) {
    _mm256_store_ps(lane, v);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  };
  if (eps >= 0.0f) {
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (int64_t at = 0; at < k; at += 16) {
      const __m256 u = _mm256_loadu_ps(x + at), v = _mm256_loadu_ps(x + at + 8);
      low = _mm256_fmadd_ps(u, u, low);
      high = _mm256_fmadd_ps(v, v, high);
    }
    inverse_rms = 1.0f / std::sqrt(sum_of(_mm256_add_ps(low, high)) / static_cast<float>(k) + eps);
  }
  const __m256 scale = _mm256_set1_ps(inverse_rms), zero = _mm256_setzero_ps();
  const __m256 unsigned_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const auto value = [&](int64_t at) __attribute__((always_inline)) {
    const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + at), scale);
    return eps >= 0.0f && norm ? _mm256_mul_ps(v, _mm256_loadu_ps(norm + at)) : v;
  };
  __m256 most = zero, finite = zero;
  for (int64_t at = 0; at < k; at += 8) {
    const __m256 v = value(at);
    most = _mm256_max_ps(_mm256_and_ps(v, unsigned_bits), most);
    finite = _mm256_add_ps(finite, _mm256_mul_ps(v, zero));
  }
  const bool broken = sum_of(finite) != 0.0f;
  _mm256_store_ps(lane, most);
  float top = 0.0f;
  for (const float one : lane) top = one > top ? one : top;
  const bool none = !(top >= kTiny);
  a.scale[row] = broken ? std::nanf("") : none ? 0.0f : top / 127.0f;
  const __m256 inverse = _mm256_set1_ps(broken || none ? 0.0f : 127.0f / top);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int8_t* out = a.codes + row * a.lda;
  int32_t total = 0;
  for (int64_t at = 0; at < k; at += kBlock4) {
    __m256i part[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 v = broken ? zero : value(at + 8 * i);
      part[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));  // to nearest even, as always
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(part[0], part[1]), _mm256_packs_epi32(part[2], part[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), _mm256_permutevar8x32_epi32(bytes, order));
    const __m256i four = _mm256_add_epi32(_mm256_add_epi32(part[0], part[1]), _mm256_add_epi32(part[2], part[3]));
    __m128i two = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    two = _mm_add_epi32(two, _mm_shuffle_epi32(two, 0x4e));
    const int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
    total += sum;
    if (blocks) {
      int32_t* sums = a.sums + 2 * (row * (a.kp / kBlock4) + at / kBlock4);
      sums[0] = sum;
      sums[1] = -8 * sum;
    }
  }
  a.sum[row] = total;
}

#endif

BL_INLINE void widen_row(const Activations& a, int64_t row) {  // of four codes 0 1 2 3: 0 2 1 3, as 16-bit numbers
  const int8_t* from = a.codes + row * a.lda;
  int16_t* wide = a.wide + row * a.lda;
  for (int64_t at = 0; at < a.kp; at += 4) {
    wide[at] = from[at];
    wide[at + 1] = from[at + 2];
    wide[at + 2] = from[at + 1];
    wide[at + 3] = from[at + 3];
  }
}

template <bool kWide>
BL_INLINE void quantize(const float* x, const float* norm, float eps, int64_t k, bool blocks, const Activations& a,
                        int64_t row) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (k == a.kp) {
    quantize_whole(x, norm, eps, k, blocks, a, row);
    if (kWide) widen_row(a, row);
    return;
  }
#endif
  const RowScale r = row_scale(x, eps, k);
  F16 most = splat(0.0f), finite = splat(0.0f);
  for (int64_t at = 0; at < k; at += 16) {
    const F16 v = row_vector(x, norm, r, at, k);
    most = larger(magnitude(v), most);
    finite = finite + v * splat(0.0f);  // NaN as soon as one value is NaN or infinite
  }
  const float top = max_lanes(most), check = sum_lanes(finite);
  const bool broken = check != 0.0f, zero = !(top >= kTiny);
  a.scale[row] = broken ? std::nanf("") : zero ? 0.0f : top / 127.0f;
  const F16 inverse = splat(broken || zero ? 0.0f : 127.0f / top);
  const F16 shift = splat(12582912.0f);
  int8_t* out = a.codes + row * a.lda;
  I16 total = splat(0);
  for (int64_t at = 0; at < a.kp; at += kBlock4) {
    I16 both = splat(0);
    for (int64_t part = at; part < at + kBlock4; part += 16) {
      F16 v = splat(0.0f);
      if (!broken && part < k) v = row_vector(x, norm, r, part, k);
      const I16 code = reinterpret_cast<I16>(v * inverse + shift) - splat(0x4b400000);
      store_as(out + part, narrow8(code));
      both = both + code;
    }
    total = total + both;
    if (blocks) {
      int32_t* sums = a.sums + 2 * (row * (a.kp / kBlock4) + at / kBlock4);
      sums[0] = sum_lanes(both);
      sums[1] = -8 * sums[0];
    }
  }
  a.sum[row] = sum_lanes(total);
  if (kWide) widen_row(a, row);
}

}  // namespace
}  // namespace baseload
