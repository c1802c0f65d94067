// Sixteen lanes on AVX2 and FMA; bfloat16 is widened to float32.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "attention/layout.h"

namespace {

typedef uint32_t __attribute__((may_alias)) Words;  // pairs of 16-bit numbers

struct S {
  struct F {
    __m256 a, b;
  };
  struct I {
    __m256i a, b;
  };
  static constexpr int kR = 6, kRInt = 4, kT = 1, kTFew = 2;  // vectors × tiles (or × 16 dimensions) held in registers
  static constexpr bool kFloats = true, kTiles = false;

  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }
  static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static float first(F x) { return _mm256_cvtss_f32(x.a); }
  static float highest(F x) {
    const __m256 m = _mm256_max_ps(x.a, x.b);
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)));
  }
  static float sum(F x) {
    const __m256 m = _mm256_add_ps(x.a, x.b);
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
  }
  static F keep_lanes(F x, int from, int to, F other) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
    return {keep_half(x.a, low, from, to, other.a), keep_half(x.b, high, from, to, other.b)};
  }
  static F exp2(F x) { return {exp2_half(x.a), exp2_half(x.b)}; }  // of x <= 0; 0 for -infinity
  static F weight2(F x) { return exp2(x); }
  static F absolute(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static F below_or_zero(F x, float bound) {  // where |x| < bound, else 0
    const F size = absolute(x);
    const __m256 b = _mm256_set1_ps(bound);
    return {_mm256_and_ps(x.a, _mm256_cmp_ps(size.a, b, _CMP_LT_OQ)),
            _mm256_and_ps(x.b, _mm256_cmp_ps(size.b, b, _CMP_LT_OQ))};
  }
  static void store_bf16(uint16_t* p, F x) {
    const __m256i packed = _mm256_packus_epi32(round_half(x.a), round_half(x.b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
  }

  // Lane i becomes x[i] + x[i ^ h] where i lacks bit h, x[i ^ h] - x[i] where it has it.
  static F butterfly1(F x) { return {pairs<0xaa, 0xb1>(x.a), pairs<0xaa, 0xb1>(x.b)}; }
  static F butterfly2(F x) { return {pairs<0xcc, 0x4e>(x.a), pairs<0xcc, 0x4e>(x.b)}; }
  static F butterfly4(F x) { return {halves(x.a), halves(x.b)}; }
  static F butterfly8(F x) { return {_mm256_add_ps(x.a, x.b), _mm256_sub_ps(x.a, x.b)}; }

  static I loadi(const void* p) {
    const __m256i* at = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static I seti(uint32_t x) {
    const __m256i v = _mm256_set1_epi32(static_cast<int>(x));
    return {v, v};
  }
  static void storei(void* p, I x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
  }
  static void store_bytes(uint8_t* p, I x) {  // of lanes from 0 to 255
    const __m256i w = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8);
    const __m128i b = _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), b);
  }
  static F set_from(const float* p) {
    const __m256 v = _mm256_broadcast_ss(p);
    return {v, v};
  }
  static I set_from(const Words* p) { return seti(*p); }
  // sum += x · y. Assembly, because GCC 12 otherwise lets the sum wander into the register of x, and spills.
  static void add_product(F* sum, F x, F y) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum->a) : "x"(x.a), "x"(y.a));
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum->b) : "x"(x.b), "x"(y.b));
  }
  static F low_bf16(const void* p) {
    const I x = loadi(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
  }
  static F high_bf16(const void* p) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    const I x = loadi(p);
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, high)), _mm256_castsi256_ps(_mm256_and_si256(x.b, high))};
  }
  static I addi(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static I subi(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
  static int32_t sumi(I x) {
    const __m256i m = _mm256_add_epi32(x.a, x.b);
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, _MM_SHUFFLE(1, 0, 3, 2)));
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, _MM_SHUFFLE(2, 3, 0, 1))));
  }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
  static I even_bytes(I x) {
    const __m256i mask = _mm256_set1_epi16(255);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
  }
  static I odd_bytes(I x) { return {_mm256_srli_epi16(x.a, 8), _mm256_srli_epi16(x.b, 8)}; }
  static I dot_i16(I acc, I x, I y) {
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(x.a, y.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(x.b, y.b))};
  }
  static F dot_bf16(F acc, I x, I y) {
    const auto low = [](I v) {
      return F{_mm256_castsi256_ps(_mm256_slli_epi32(v.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(v.b, 16))};
    };
    return fma(high_bf16(&x), high_bf16(&y), fma(low(x), low(y), acc));
  }
  static void store_widening(uint16_t* p, I x) {
    __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    w = _mm256_shufflelo_epi16(w, _MM_SHUFFLE(3, 1, 2, 0));
    w = _mm256_shufflehi_epi16(w, _MM_SHUFFLE(3, 1, 2, 0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), w);
  }

 private:
  template <int kLanes>
  static __m256 flip(__m256 x) {
    return _mm256_blend_ps(x, _mm256_sub_ps(_mm256_setzero_ps(), x), kLanes);
  }
  template <int kLanes, int kOrder>
  static __m256 pairs(__m256 x) {
    return _mm256_add_ps(flip<kLanes>(x), _mm256_permute_ps(x, kOrder));
  }
  static __m256 halves(__m256 x) { return _mm256_add_ps(flip<0xf0>(x), _mm256_permute2f128_ps(x, x, 1)); }
  static __m256 keep_half(__m256 x, __m256i lanes, int from, int to, __m256 other) {
    const __m256i late = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(from - 1));
    const __m256i soon = _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lanes);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_and_si256(late, soon)));
  }
  static __m256 exp2_half(__m256 x) {
    const auto one = [](float v) { return _mm256_set1_ps(v); };
    const __m256 n = _mm256_round_ps(x, 8);
    const __m256 r = _mm256_sub_ps(x, n);
    __m256 p = one(1.3333558146428443e-3f);
    p = _mm256_fmadd_ps(p, r, one(9.6181291076284772e-3f));
    p = _mm256_fmadd_ps(p, r, one(5.5504108664821580e-2f));
    p = _mm256_fmadd_ps(p, r, one(2.4022650695910072e-1f));
    p = _mm256_fmadd_ps(p, r, one(6.9314718055994531e-1f));
    p = _mm256_fmadd_ps(p, r, one(1.0f));
    const __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(scale));
    const __m256 tiny = _mm256_cmp_ps(x, one(-125.0f), _CMP_LT_OQ);
    return _mm256_andnot_ps(tiny, p);
  }
  static __m256i round_half(__m256 x) {  // the bits of bfloat16 in the low half of each lane
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  }
};

}  // namespace
