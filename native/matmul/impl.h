// The kernels' body, compiled once per instruction set: a translation unit defines the type `I` (in its own anonymous
// namespace) with the few operations that differ, and instantiates Impl<I>.
//
// A panel's 16 rows of W are the 16 lanes of a vector. A block of R rows of activations times P panels keeps R·P sums
// in registers while K is walked once; each weight vector is loaded once for R rows. Integer sums are exact, so any
// order gives the same bits; float (bf16) sums follow one chain along K per output, whatever R and P are. A row's bits
// therefore never depend on its batch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "matmul/kernels.h"

namespace baseload {
namespace {

#define BL_INLINE inline __attribute__((always_inline))

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef int8_t B16 __attribute__((vector_size(16)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int16_t S16 __attribute__((vector_size(32)));

constexpr float kTiny = 1e-30f;  // a row whose largest value is below this is taken as zero
constexpr int64_t kAhead = 4096;  // bytes a streamed panel is fetched ahead

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

// ---- activations

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
      store_as(a.floats + row * a.kp + at, rounded << 16);
    } else {
      store_as(a.bf16 + row * a.kp + at, narrow16(rounded));
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
  int8_t* out = a.codes + row * a.kp;
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
  const int8_t* from = a.codes + row * a.kp;
  int16_t* wide = a.wide + row * a.kp;
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
  int8_t* out = a.codes + row * a.kp;
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

// ---- results

// Writes one row's sums of `panels` neighbouring panels, the first of them `p`.
template <int P>
BL_INLINE void finish(const Block& b, int64_t row, int64_t p, const F16* sums) {
  F16 v[P];
  for (int j = 0; j < P; ++j) v[j] = b.bias ? sums[j] + load_as<F16>(b.bias + (p + j) * kPanel) : sums[j];
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
  for (int j = 0; j < P; ++j) v[j] = to_float(sums[j] - offset) * scale * load_as<F16>(b.w.scale + (p + j) * kPanel);
  finish<P>(b, row, p, v);
}

// ---- products

struct Stream {  // what a block fetches for the next one: bytes [from + i·stride) at step i; none if null
  const uint8_t* from = nullptr;
  int64_t stride = 0;
};

BL_INLINE void fetch(const uint8_t* at) { __builtin_prefetch(at, 0, 2); }

constexpr int64_t kStreamRows = 2;  // so few rows wait for memory: panels one after the other are one stream

template <class I>
struct Impl {
  // R rows × P panels of 8-bit weights; KU independent sums per output hide the latency where R·P is small.
  template <int R, int P, int KU>
  static void block8(const Block& b, int64_t row, int64_t p, const uint8_t* w, int64_t stride, Stream ahead) {
    typename I::Acc acc[KU][R][P];
    for (int u = 0; u < KU; ++u)
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < P; ++j) acc[u][i][j] = I::zero();
    const int64_t steps = b.a.kp / 4;
    const typename I::Act* a = I::activations(b.a) + row * b.a.kp;
    const int64_t lda = b.a.kp;
    int64_t s = 0;
    const auto step = [&](const uint8_t* fetched) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int u = 0; u < KU; ++u) {
        typename I::W8 wv[P];
#pragma GCC unroll 4
        for (int j = 0; j < P; ++j) {
          wv[j] = I::load8(w + j * stride + (s + u) * 64);
          if (fetched) fetch(fetched + j * stride + (s + u) * 64);
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          const typename I::A8 av = I::splat8(a + i * lda + 4 * (s + u));
#pragma GCC unroll 4
          for (int j = 0; j < P; ++j) I::dot8(acc[u][i][j], wv[j], av);
        }
      }
    };
    if (ahead.stride < 0) {  // stream: this block's own panels, then the next ones
      const int64_t turn = steps > kAhead / 64 ? steps - kAhead / 64 : 0;
      for (; s < turn; s += KU) step(w + kAhead);
      for (; s < steps; s += KU) step(w + kAhead + (P - 1) * stride);
    } else if (ahead.from) {
      const uint8_t* next = ahead.from;
      for (; s < steps; s += KU) {
        step(nullptr);
        fetch(next);
        next += ahead.stride * KU;
      }
    } else {
      for (; s < steps; s += KU) step(nullptr);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      I16 sums[P];
      for (int j = 0; j < P; ++j) {
        sums[j] = I::value(acc[0][i][j]);
        for (int u = 1; u < KU; ++u) sums[j] = sums[j] + I::value(acc[u][i][j]);
      }
      finish_int<P>(b, row + i, p, sums);
    }
  }

  // R rows × P panels of 4-bit weights without unpacking: sums per 32 of K, folded with the group's step and offset.
  template <int R, int P>
  static void block4(const Block& b, int64_t row, int64_t p) {
    typename I::Acc acc[R][P];
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < P; ++j) acc[i][j] = I::zero();
    const int64_t blocks = b.a.kp / kBlock4, per_group = b.w.group / kBlock4;
    const int64_t stride = b.w.panel_bytes(), group_stride = b.w.group_bytes();
    const uint8_t* w = b.w.panel(p);
    const uint8_t* groups = b.w.panel_groups(p);
    const int8_t* a = b.a.codes + row * b.a.kp;
    const int32_t* sums = b.a.sums + 2 * row * blocks;
    int64_t in_group = 0;
    for (int64_t k = 0; k < blocks; ++k) {
      const uint8_t* g = groups;
      if (++in_group == per_group) {
        in_group = 0;
        groups += 2 * kPanel;
      }
      // Ahead of each stream; past a panel's end, where the next P panels go on.
      const int64_t ahead = kAhead + (k * 256 + kAhead >= stride ? (P - 1) * stride : 0);
      typename I::Acc4 part[R][P];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < P; ++j) part[i][j] = I::start4(sums + 2 * (i * blocks + k));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        typename I::W4 wv[P];
#pragma GCC unroll 4
        for (int j = 0; j < P; ++j) {
          const uint8_t* at = w + j * stride + (4 * k + v) * 64;
          wv[j] = I::load4(at);
          fetch(at + ahead);
        }
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          const typename I::A4 av = I::splat4(a + i * b.a.kp + k * kBlock4 + 8 * v);
#pragma GCC unroll 4
          for (int j = 0; j < P; ++j) I::dot4(part[i][j], wv[j], av);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < P; ++j) {
        const typename I::Fold fold = I::load_fold(g + j * group_stride);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) I::fold4(acc[i][j], part[i][j], fold, sums[2 * (i * blocks + k)]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      I16 values[P];
      for (int j = 0; j < P; ++j) values[j] = I::value(acc[i][j]);
      finish_int<P>(b, row + i, p, values);
    }
  }

  template <int R, int P>
  static void blockb(const Block& b, int64_t row, int64_t p, Stream ahead) {
    typename I::AccF acc[R][P];
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < P; ++j) acc[i][j] = I::zerof();
    const int64_t steps = b.a.kp / 2, stride = b.w.panel_bytes(), lda = b.a.kp;
    const uint8_t* w = b.w.panel(p);
    const typename I::ActB* a = I::activationsb(b.a) + row * lda;
    int64_t s = 0;
    const auto step = [&](const uint8_t* fetched) __attribute__((always_inline)) {
      typename I::WB wv[P];
#pragma GCC unroll 4
      for (int j = 0; j < P; ++j) {
        wv[j] = I::loadb(w + j * stride + s * 64);
        if (fetched) fetch(fetched + j * stride + s * 64);
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const typename I::AB av = I::splatb(a + i * lda + 2 * s);
#pragma GCC unroll 4
        for (int j = 0; j < P; ++j) I::dotb(acc[i][j], wv[j], av);
      }
    };
    if (ahead.stride < 0) {
      const int64_t turn = steps > kAhead / 64 ? steps - kAhead / 64 : 0;
      for (; s < turn; ++s) step(w + kAhead);
      for (; s < steps; ++s) step(w + kAhead + (P - 1) * stride);
    } else if (ahead.from) {
      const uint8_t* next = ahead.from;
      for (; s < steps; ++s) {
        step(nullptr);
        fetch(next);
        next += ahead.stride;
      }
    } else {
      for (; s < steps; ++s) step(nullptr);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      F16 sums[P];
      for (int j = 0; j < P; ++j) sums[j] = I::valuef(acc[i][j]);
      finish<P>(b, row + i, p, sums);
    }
  }

  // ---- choosing a block for the rows at hand: R is a compile-time number, so a chain of comparisons leads to it

  template <int P, int R = I::kRows>
  static BL_INLINE void rows8(int64_t rows, const Block& b, int64_t row, int64_t p, const uint8_t* w, int64_t stride,
                              Stream ahead) {
    if constexpr (R >= 1) {
      if (rows == R) {
        block8<R, P, (R * P <= 2 ? 4 : R * P <= 4 ? 2 : 1)>(b, row, p, w, stride, ahead);
      } else {
        rows8<P, R - 1>(rows, b, row, p, w, stride, ahead);
      }
    }
  }

  template <int P, int R = I::kRows>
  static BL_INLINE void rowsb(int64_t rows, const Block& b, int64_t row, int64_t p, Stream ahead) {
    if constexpr (R >= 1) {
      if (rows == R) {
        blockb<R, P>(b, row, p, ahead);
      } else {
        rowsb<P, R - 1>(rows, b, row, p, ahead);
      }
    }
  }

  template <int P, int R = I::kRows4>
  static BL_INLINE void rows4(int64_t rows, const Block& b, int64_t row, int64_t p) {
    if constexpr (R >= 1) {
      if (rows == R) {
        block4<R, P>(b, row, p);
      } else {
        rows4<P, R - 1>(rows, b, row, p);
      }
    }
  }

  // Calls f(row, rows, index, count) for blocks of nearly equal size, none larger than `most`.
  template <class F>
  static BL_INLINE void split_rows(const Block& b, int64_t most, const F& f) {
    const int64_t total = b.row_end - b.row_begin, count = (total + most - 1) / most;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = b.row_begin + total * i / count, to = b.row_begin + total * (i + 1) / count;
      f(from, to - from, i, count);
    }
  }

  // The first block of several streams its own panels unless the task's panels before have fetched them already.
  static Stream ahead_of(const uint8_t* next, int64_t bytes, int64_t steps, int64_t index, int64_t count, bool first) {
    if (count == 1 || (first && index == 0)) return streaming();
    return next_only(next, bytes, steps, index, count);
  }

  static Stream next_only(const uint8_t* next, int64_t bytes, int64_t steps, int64_t index, int64_t count) {
    if (!next) return {};
    Stream stream;
    stream.from = next + bytes / count * index;
    stream.stride = bytes / count / steps;
    return stream;
  }

  static Stream streaming() {
    Stream stream;
    stream.stride = -1;
    return stream;
  }

  template <int P>
  static void panels8(const Block& b, int64_t p, const uint8_t* next) {
    const int64_t bytes = b.w.panel_bytes();
    if (P > 1 && b.row_end - b.row_begin <= kStreamRows) {
      for (int j = 0; j < P; ++j) panels8<1>(b, p + j, nullptr);
      return;
    }
    split_rows(b, I::kRows, [&](int64_t row, int64_t rows, int64_t index, int64_t count) {
      const Stream ahead = ahead_of(next, P * bytes, b.w.kp / 4, index, count, p == b.panel_begin);
      rows8<P>(rows, b, row, p, b.w.panel(p), bytes, ahead);
    });
  }

  template <int P>
  static void panels4(const Block& b, int64_t p, const uint8_t* next) {
    if (b.row_end - b.row_begin <= I::kDirect4) {
      if (P > 1 && b.row_end - b.row_begin <= kStreamRows) {
        for (int j = 0; j < P; ++j) panels4<1>(b, p + j, nullptr);
        return;
      }
      split_rows(b, I::kRows4, [&](int64_t row, int64_t rows, int64_t, int64_t) { rows4<P>(rows, b, row, p); });
      return;
    }
    const int64_t bytes = b.w.kp * kPanel;
    for (int j = 0; j < P; ++j) unpack4(b.w, p + j, b.scratch + j * bytes);
    split_rows(b, I::kRows, [&](int64_t row, int64_t rows, int64_t index, int64_t count) {
      const Stream ahead = next_only(next, P * b.w.panel_bytes(), b.w.kp / 4, index, count);
      rows8<P>(rows, b, row, p, b.scratch, bytes, ahead);
    });
  }

  template <int P>
  static void panelsb(const Block& b, int64_t p, const uint8_t* next) {
    split_rows(b, I::kRows, [&](int64_t row, int64_t rows, int64_t index, int64_t count) {
      const int64_t bytes = P * b.w.panel_bytes();
      const Stream ahead = ahead_of(next, bytes, b.w.kp / 2, index, count, p == b.panel_begin);
      rowsb<P>(rows, b, row, p, ahead);
    });
  }

  // One 4-bit panel as 8-bit codes, kp · 16 bytes.
  static void unpack4(const Matrix& w, int64_t p, uint8_t* to) {
    const uint8_t* from = w.panel(p);
    const uint8_t* groups = w.panel_groups(p);
    const int64_t vectors = w.group / 8;
    for (int64_t g = 0; g < w.kp / w.group; ++g) {
      const typename I::Unpack u = I::load_unpack(groups + g * 2 * kPanel);
      for (int64_t v = 0; v < vectors; ++v) {
        I::unpack(u, from, to);
        from += 64;
        to += 128;
      }
    }
  }

  template <int P>
  static BL_INLINE void panels(const Block& b, int64_t p) {
    const uint8_t* next = p + 2 * P <= b.panel_end ? b.w.panel(p + P) : nullptr;
    switch (b.w.scheme) {
      case Scheme::kW8:
        return panels8<P>(b, p, next);
      case Scheme::kW4:
        return panels4<P>(b, p, next);
      case Scheme::kBf16:
        return panelsb<P>(b, p, next);
    }
  }

  static void run(const Block& b) {
    if (b.row_end <= b.row_begin) return;
    int64_t p = b.panel_begin;
    for (; p + I::kPanels <= b.panel_end; p += I::kPanels) panels<I::kPanels>(b, p);
    if constexpr (I::kPanels > 2) {
      for (; p + 2 <= b.panel_end; p += 2) panels<2>(b, p);
    }
    for (; p < b.panel_end; ++p) panels<1>(b, p);
  }

  static void prepare_row(const float* x, const float* norm, float eps, int64_t k, Scheme scheme, const Activations& a,
                          int64_t row) {
    if (scheme == Scheme::kBf16) return round_bf16<I::kFloats>(x, norm, eps, k, a, row);
    if (I::kWide && scheme == Scheme::kW8) return quantize<true>(x, norm, eps, k, false, a, row);
    return quantize<false>(x, norm, eps, k, scheme == Scheme::kW4, a, row);
  }

  // ---- limits

  static constexpr int kChains = I::kRows * I::kPanels < 12 ? I::kRows * I::kPanels : 12;

  template <class Acc, class Dot, class Value>
  static BL_INLINE int64_t chains(int64_t rounds, int64_t each, Acc zero, const Dot& dot, const Value& value) {
    Acc acc[kChains];
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) acc[c] = zero;
    for (int64_t i = 0; i < rounds; ++i) {
      __asm__ volatile("" : : : "memory");  // operands are loaded anew, so that nothing is computed once for all rounds
      dot(acc);
    }
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      auto kept = value(acc[c]);
      __asm__ volatile("" : : "m"(kept) : "memory");
    }
    return rounds * kChains * each;
  }

  static int64_t peak(Scheme scheme, int64_t rounds) {
    alignas(64) uint8_t w[64];
    alignas(64) int16_t a[32];
    std::memset(w, 1, sizeof(w));
    std::memset(a, 0, sizeof(a));
    __asm__ volatile("" : : "r"(w), "r"(a) : "memory");
    if (scheme == Scheme::kBf16) {
      const auto dot = [&](typename I::AccF* acc) __attribute__((always_inline)) {
        const typename I::WB wv = I::loadb(w);
        const typename I::AB av = I::splatb(reinterpret_cast<const typename I::ActB*>(a));
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) I::dotb(acc[c], wv, av);
      };
      return chains(rounds, 32, I::zerof(), dot, [](const auto& one) { return I::valuef(one); });
    }
    const auto dot = [&](typename I::Acc* acc) __attribute__((always_inline)) {
      const typename I::W8 wv = I::load8(w);
      const typename I::A8 av = I::splat8(reinterpret_cast<const typename I::Act*>(a));
#pragma GCC unroll 16
      for (int c = 0; c < kChains; ++c) I::dot8(acc[c], wv, av);
    };
    return chains(rounds, 64, I::zero(), dot, [](const auto& one) { return I::value(one); });
  }

  static uint64_t read(const uint8_t* from, int64_t bytes) {
    I16 a = splat(0), b = splat(0), c = splat(0), d = splat(0);
    for (int64_t at = 0; at + 256 <= bytes; at += 256) {
      fetch(from + at + kAhead);
      fetch(from + at + kAhead + 64);
      fetch(from + at + kAhead + 128);
      fetch(from + at + kAhead + 192);
      a = a ^ load_as<I16>(from + at);
      b = b ^ load_as<I16>(from + at + 64);
      c = c ^ load_as<I16>(from + at + 128);
      d = d ^ load_as<I16>(from + at + 192);
    }
    return static_cast<uint64_t>(sum_lanes(a ^ b ^ c ^ d));
  }

  static const Kernels* table(const char* name) {
    static const Kernels kernels{name, I::kWide, I::kFloats, &prepare_row, &run, &peak, &read};
    return &kernels;
  }
};

}  // namespace
}  // namespace baseload
