// Operations that plain AVX2 and AVX-VNNI share. Included only by translation units built for one of them.
#pragma once

#include <immintrin.h>

#include "matmul/kernels.h"
#include "matmul/vectors.h"

namespace baseload {
namespace {

struct Two {  // 16 lanes in two registers
  __m256i lo, hi;
};

BL_INLINE Two bytes_to_lanes(const uint8_t* p) {  // u8[16] to int32 lanes
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}

BL_INLINE __m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
BL_INLINE __m256i splat_dword(const void* p) { return _mm256_set1_epi32(load_as<int32_t>(p)); }

struct Avx2Common {
  typedef Two Acc;
  static BL_INLINE Two zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  // By way of a copy: read as a whole, the sums would live in memory (GCC 12; for the float sums it is the other way).
  static BL_INLINE I16 value(const Two& acc) {
    const __m256i both[2] = {acc.lo, acc.hi};
    return load_as<I16>(both);
  }

  // 4-bit: products of codes (at most 15) and int8 stay in 16 bits for 32 of K: 8 · 2 · 15 · 127 = 30,480.
  typedef Two Acc4;
  struct W4 {
    Two low, high;
  };
  struct A4 {
    __m256i first, second;
  };
  static BL_INLINE Two start4(const int32_t*) { return zero(); }
  static BL_INLINE A4 splat4(const int8_t* p) { return {splat_dword(p), splat_dword(p + 4)}; }
  static BL_INLINE W4 load4(const uint8_t* p) {
    const __m256i mask = _mm256_set1_epi8(15), a = load256(p), b = load256(p + 32);
    return {{_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)},
            {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)}};
  }
  static BL_INLINE void dot4(Two& acc, const W4& w, const A4& a) {
    acc.lo = _mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(w.low.lo, a.first));
    acc.hi = _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(w.low.hi, a.first));
    acc.lo = _mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(w.high.lo, a.second));
    acc.hi = _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(w.high.hi, a.second));
  }
  struct Fold {
    Two step, offset;
  };
  static BL_INLINE Fold load_fold(const uint8_t* p) {
    const Two g = bytes_to_lanes(p);
    const auto pair = [](__m256i g) { return _mm256_or_si256(g, _mm256_slli_epi32(g, 16)); };
    return {{pair(g.lo), pair(g.hi)}, bytes_to_lanes(p + 16)};
  }
  static BL_INLINE void fold4(Two& acc, const Two& part, const Fold& f, int32_t sum) {
    const __m256i s = _mm256_set1_epi32(sum & 0xffff);  // |sum| <= 32 · 127: a 16-bit factor
    const auto both = [&](__m256i a, __m256i p, __m256i g, __m256i z) {
      return _mm256_add_epi32(a, _mm256_add_epi32(_mm256_madd_epi16(p, g), _mm256_madd_epi16(z, s)));
    };
    acc.lo = both(acc.lo, part.lo, f.step.lo, f.offset.lo);
    acc.hi = both(acc.hi, part.hi, f.step.hi, f.offset.hi);
  }

  struct Unpack {
    Two step, offset;  // 16-bit steps, bytes of offsets
  };
  static BL_INLINE Unpack load_unpack(const uint8_t* p) {
    const Two g = bytes_to_lanes(p), z = bytes_to_lanes(p + 16);
    const __m256i words = _mm256_set1_epi32(0x00010001), all = _mm256_set1_epi32(0x01010101);
    return {{_mm256_mullo_epi32(g.lo, words), _mm256_mullo_epi32(g.hi, words)},
            {_mm256_mullo_epi32(z.lo, all), _mm256_mullo_epi32(z.hi, all)}};
  }
  static BL_INLINE void unpack(const Unpack& u, const uint8_t* from, uint8_t* to) {
    const W4 w = load4(from);
    const auto put = [&](uint8_t* at, __m256i c, __m256i g, __m256i z) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_add_epi8(_mm256_mullo_epi16(c, g), z));
    };
    put(to, w.low.lo, u.step.lo, u.offset.lo);
    put(to + 32, w.low.hi, u.step.hi, u.offset.hi);
    put(to + 64, w.high.lo, u.step.lo, u.offset.lo);
    put(to + 96, w.high.hi, u.step.hi, u.offset.hi);
  }

  static constexpr bool kFloats = true;
  typedef float ActB;
  struct AccF {
    __m256 lo, hi;
  };
  struct WB {
    __m256 lo0, hi0, lo1, hi1;  // first and second of each pair
  };
  struct AB {
    __m256 first, second;
  };
  static BL_INLINE AccF zerof() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static BL_INLINE F16 valuef(const AccF& acc) { return load_as<F16>(&acc); }
  static BL_INLINE WB loadb(const uint8_t* p) {
    const __m256i a = load256(p), b = load256(p + 32), high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
  }
  static BL_INLINE const float* activationsb(const Activations& a) { return a.floats; }
  static BL_INLINE AB splatb(const float* p) { return {_mm256_broadcast_ss(p), _mm256_broadcast_ss(p + 1)}; }
  static BL_INLINE void dotb(AccF& acc, const WB& w, const AB& a) {
    acc.lo = _mm256_fmadd_ps(w.lo1, a.second, _mm256_fmadd_ps(w.lo0, a.first, acc.lo));
    acc.hi = _mm256_fmadd_ps(w.hi1, a.second, _mm256_fmadd_ps(w.hi0, a.first, acc.hi));
  }
};

}  // namespace
}  // namespace baseload
