// 16 lanes at a time: a panel's 16 rows of W are the 16 lanes of a vector. Written with the compiler's vectors, so that one
// text serves every instruction set; by hand where GCC 12 makes too much of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace baseload {
namespace {

#define BL_INLINE inline __attribute__((always_inline))

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef int8_t B16 __attribute__((vector_size(16)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int16_t S16 __attribute__((vector_size(32)));

template <class V>
BL_INLINE V load_as(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <class V>
BL_INLINE void store_as(void* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}

BL_INLINE F16 splat(float x) { return F16{} + x; }
BL_INLINE I16 splat(int32_t x) { return I16{} + x; }
BL_INLINE F16 to_float(I16 x) { return __builtin_convertvector(x, F16); }

// Lanes are always joined in the same order: 8 apart, then 4, 2, 1.
template <class V, class F>
BL_INLINE auto fold_lanes(V v, const F& f) {
  typedef decltype(v[0] + v[0]) T;
  T lane[16];
  for (int i = 0; i < 16; ++i) lane[i] = v[i];
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = f(lane[i], lane[i + half]);
  }
  return lane[0];
}

BL_INLINE float sum_lanes(F16 v) {
  return fold_lanes(v, [](float a, float b) { return a + b; });
}
BL_INLINE int32_t sum_lanes(I16 v) {
  return fold_lanes(v, [](int32_t a, int32_t b) { return a + b; });
}
BL_INLINE float max_lanes(F16 v) {
  return fold_lanes(v, [](float a, float b) { return a > b ? a : b; });
}

// a > b ? a : b and a < b ? a : b, lane by lane (b where one is NaN); `nan` where x is NaN, else `other`; and the low
// parts of lanes. With AVX2 by hand: GCC 12 takes 64-byte selections and narrowing apart into single lanes there
// (measured: 3.5 µs for a row of 1,024, not 0.6).
#if defined(__AVX2__) && !defined(__AVX512F__)

template <class F>
BL_INLINE F16 by_halves(F16 a, F16 b, const F& f) {
  __m256 x[2], y[2];
  std::memcpy(x, &a, 64);
  std::memcpy(y, &b, 64);
  const __m256 z[2] = {f(x[0], y[0]), f(x[1], y[1])};
  return load_as<F16>(z);
}
BL_INLINE F16 larger(F16 a, F16 b) {
  return by_halves(a, b, [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); });
}
BL_INLINE F16 smaller(F16 a, F16 b) {
  return by_halves(a, b, [](__m256 x, __m256 y) { return _mm256_min_ps(x, y); });
}
BL_INLINE U16 unless_nan(F16 x, U16 other, uint32_t nan) {
  const __m256 value = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int32_t>(nan)));
  return reinterpret_cast<U16>(by_halves(x, reinterpret_cast<F16>(other), [&](__m256 v, __m256 o) {
    return _mm256_blendv_ps(o, value, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }));
}
BL_INLINE H16 narrow16(U16 x) {
  __m256i half[2];
  std::memcpy(half, &x, 64);
  const __m256i mixed = _mm256_packus_epi32(half[0], half[1]);
  return reinterpret_cast<H16>(_mm256_permute4x64_epi64(mixed, 0xd8));
}
BL_INLINE B16 narrow8(I16 x) {
  __m256i half[2];
  std::memcpy(half, &x, 64);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(half[0], half[1]), 0xd8);
  return reinterpret_cast<B16>(_mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

#else

BL_INLINE F16 larger(F16 a, F16 b) { return a > b ? a : b; }
BL_INLINE F16 smaller(F16 a, F16 b) { return a < b ? a : b; }
BL_INLINE U16 unless_nan(F16 x, U16 other, uint32_t nan) { return x != x ? U16{} + nan : other; }
BL_INLINE H16 narrow16(U16 x) { return __builtin_convertvector(x, H16); }
BL_INLINE B16 narrow8(I16 x) { return __builtin_convertvector(x, B16); }

#endif

BL_INLINE F16 magnitude(F16 x) { return reinterpret_cast<F16>(reinterpret_cast<I16>(x) & splat(0x7fffffff)); }

// exp(x) for x in [-87, 88]: 2^n · e^r, r within ln 2 / 2, by a polynomial of degree 6 (relative error below 3e-7).
BL_INLINE F16 exp_of(F16 x) {
  x = smaller(splat(88.0f), larger(splat(-87.0f), x));
  const F16 shift = splat(12582912.0f);  // adding it rounds to an integer, kept in the low bits
  const F16 shifted = x * splat(1.44269504f) + shift;
  const F16 n = shifted - shift;
  const F16 r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  F16 p = splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  const I16 power = (reinterpret_cast<I16>(shifted) - splat(0x4b400000) + splat(127)) << 23;
  return p * reinterpret_cast<F16>(power);
}

BL_INLINE F16 swiglu_of(F16 gate, F16 up) {
  // Where gate is NaN, the comparisons in exp_of are false and the product keeps it.
  return gate / (splat(1.0f) + exp_of(-gate)) * up;
}

BL_INLINE F16 load_part(const float* from, int64_t count) {
  if (count >= 16) return load_as<F16>(from);
  float lane[16] = {};
  for (int64_t i = 0; i < count; ++i) lane[i] = from[i];
  return load_as<F16>(lane);
}

BL_INLINE void store_part(float* to, F16 v, int64_t count) {
  if (count >= 16) {
    store_as(to, v);
    return;
  }
  float lane[16];
  store_as(lane, v);
  for (int64_t i = 0; i < count; ++i) to[i] = lane[i];
}

}  // namespace
}  // namespace baseload
