// Sixteen lanes on AVX-512 with VNNI; without BF16 bfloat16 is widened to float32.
#pragma once

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says so of its own intrinsics
#include <immintrin.h>

#include <cstdint>

#include "attention/layout.h"

namespace {

typedef uint32_t __attribute__((may_alias)) Words;  // pairs of 16-bit numbers

struct S {
  using F = __m512;
  using I = __m512i;
  // Vectors × tiles (or × 16 dimensions) held in registers.
#if defined(__AVX512BF16__)
  static constexpr int kR = 4, kRInt = 4, kT = 4, kTFew = 4;
  static constexpr bool kFloats = false;
#else
  static constexpr int kR = 6, kRInt = 4, kT = 2, kTFew = 4;
  static constexpr bool kFloats = true;
#endif
#ifdef BASELOAD_ATTENTION_TILES
  static constexpr bool kTiles = true;
#else
  static constexpr bool kTiles = false;
#endif

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float first(F x) { return _mm512_cvtss_f32(x); }
  static float highest(F x) { return _mm512_reduce_max_ps(x); }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static F keep_lanes(F x, int from, int to, F other) {
    const unsigned mask = to > from ? ((1u << to) - 1u) & ~((1u << from) - 1u) : 0u;
    return _mm512_mask_blend_ps(static_cast<__mmask16>(mask), other, x);
  }
  static F exp2(F x) {  // of x <= 0; 0 where that would be denormal, and for -infinity
    const F at_least = _mm512_max_ps(set(-1000.0f), x);  // in this order what is not a number stays so
    const F n = _mm512_roundscale_ps(at_least, 8);
    const F r = _mm512_sub_ps(at_least, n);
    F p = set(1.3333558146428443e-3f);
    p = fma(p, r, set(9.6181291076284772e-3f));
    p = fma(p, r, set(5.5504108664821580e-2f));
    p = fma(p, r, set(2.4022650695910072e-1f));
    p = fma(p, r, set(6.9314718055994531e-1f));
    p = fma(p, r, set(1.0f));
    return _mm512_scalef_ps(p, n);
  }
  // 2^x of x <= 0 within 4e-6 of it: of the power's whole part only the exponent takes notice.
  static F weight2(F x) {
    const F r = _mm512_reduce_ps(x, 1);  // x - floor(x); of -infinity 0
    F p = set(1.353410570e-2f);
    p = fma(p, r, set(5.201146889e-2f));
    p = fma(p, r, set(2.414428407e-1f));
    p = fma(p, r, set(6.930037902e-1f));
    p = fma(p, r, set(1.000002598f));
    return _mm512_scalef_ps(p, x);
  }
  static F absolute(F x) { return _mm512_abs_ps(x); }
  static F below_or_zero(F x, float bound) {  // where |x| < bound, else 0
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(_mm512_abs_ps(x), set(bound), _CMP_LT_OQ), x);
  }
#if defined(__AVX512BF16__)
  static void store_bf16(uint16_t* p, F x) {
    const __m256bh b = _mm512_cvtneps_pbh(x);
    __builtin_memcpy(p, &b, 32);
  }
  static F dot_bf16(F acc, I a, I b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
#else
  static void store_bf16(uint16_t* p, F x) {  // to the nearest, ties to even; what is not a number stays so
    const I bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), seti(1));
    const I rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, seti(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const I kept = _mm512_mask_or_epi32(rounded, nan, bits, seti(0x00400000u));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }
  static F dot_bf16(F acc, I a, I b) {
    const I high = seti(0xffff0000u);
    acc = fma(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc);
    return fma(_mm512_castsi512_ps(_mm512_and_si512(a, high)), _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc);
  }
#endif

  // Lane i becomes x[i] + x[i ^ h] where i lacks bit h, x[i ^ h] - x[i] where it has it.
  static F butterfly1(F x) { return _mm512_add_ps(flip<0xaaaa>(x), _mm512_permute_ps(x, 0xb1)); }
  static F butterfly2(F x) { return _mm512_add_ps(flip<0xcccc>(x), _mm512_permute_ps(x, 0x4e)); }
  static F butterfly4(F x) { return _mm512_add_ps(flip<0xf0f0>(x), _mm512_shuffle_f32x4(x, x, 0xb1)); }
  static F butterfly8(F x) { return _mm512_add_ps(flip<0xff00>(x), _mm512_shuffle_f32x4(x, x, 0x4e)); }

  static I loadi(const void* p) { return _mm512_loadu_si512(p); }
  static I seti(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static void storei(void* p, I x) { _mm512_storeu_si512(p, x); }
  static void store_bytes(uint8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static F set_from(const float* p) { return set(*p); }
  static I set_from(const Words* p) { return seti(*p); }
  static void add_product(F* sum, F x, F y) { __asm__("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(y)); }
  static F low_bf16(const void* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(loadi(p), 16)); }
  static F high_bf16(const void* p) {
    return _mm512_castsi512_ps(_mm512_and_si512(loadi(p), seti(0xffff0000u)));
  }
  // Bytes less 128 as bfloat16: of each lane the first two to `first`, the others to `second`.
  static void widen_bytes(I x, void* first, void* second) {
    const I y = _mm512_xor_si512(x, seti(0x80808080u));
    storei(first, pair_of(_mm512_slli_epi32(y, 24), _mm512_slli_epi32(y, 16)));
    storei(second, pair_of(_mm512_slli_epi32(y, 8), y));
  }
  static I addi(I a, I b) { return _mm512_add_epi32(a, b); }
  static I subi(I a, I b) { return _mm512_sub_epi32(a, b); }
  static int32_t sumi(I x) { return _mm512_reduce_add_epi32(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I to_int(F x) { return _mm512_cvtps_epi32(x); }
  static I even_bytes(I x) { return _mm512_and_si512(x, _mm512_set1_epi16(255)); }
  static I odd_bytes(I x) { return _mm512_srli_epi16(x, 8); }
  static I dot_i16(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }
  static void store_widening(uint16_t* p, I x) {
    __m256i w = _mm512_cvtepi32_epi16(x);
    w = _mm256_shufflelo_epi16(w, _MM_SHUFFLE(3, 1, 2, 0));
    w = _mm256_shufflehi_epi16(w, _MM_SHUFFLE(3, 1, 2, 0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), w);
  }

 private:
  static I pair_of(I low, I high) {  // the highest bytes of the lanes, signed
    const I a = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(low, 24)));
    const I b = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(high, 24)));
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(a, 16), b);
  }
  template <unsigned kLanes>
  static F flip(F x) {
    return _mm512_mask_sub_ps(x, static_cast<__mmask16>(kLanes), set(0), x);
  }
};

}  // namespace
