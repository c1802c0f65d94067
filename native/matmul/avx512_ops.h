// Operations on 512-bit registers with VNNI; one register is one panel. With BF16, products of bfloat16 are one
// instruction; without, both are widened. Included only by translation units built for them.
#pragma once

#include <immintrin.h>

#include "matmul/kernels.h"
#include "matmul/vectors.h"

namespace baseload {
namespace {

struct Avx512 {
  static constexpr int kRows = 12, kRows4 = 6, kPanels = 2, kDirect4 = 12;
  static constexpr bool kWide = false;

  typedef __m512i Acc;
  typedef int8_t Act;
  typedef __m512i W8;
  typedef __m512i A8;
  static BL_INLINE const int8_t* activations(const Activations& a) { return a.codes; }
  static BL_INLINE Acc zero() { return _mm512_setzero_si512(); }
  static BL_INLINE I16 value(Acc acc) { return reinterpret_cast<I16>(acc); }
  static BL_INLINE W8 load8(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static BL_INLINE A8 splat8(const int8_t* p) { return _mm512_set1_epi32(load_as<int32_t>(p)); }
  // As assembly: GCC 12 copies each sum to another register and back around its own intrinsic (measured: 2.4 times slower).
  static BL_INLINE void dot8(Acc& acc, W8 w, A8 a) { __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(a)); }

  typedef __m512i Acc4;
  struct W4 {
    __m512i low, high;
  };
  struct A4 {
    __m512i first, second;
  };
  // Sums of a · (code − 8) over 32 fit 16 bits, so one VPDPWSSD multiplies them by the step and adds them up.
  static BL_INLINE Acc4 start4(const int32_t* sums) { return _mm512_set1_epi32(sums[1]); }
  static BL_INLINE A4 splat4(const int8_t* p) { return {splat8(p), splat8(p + 4)}; }
  static BL_INLINE W4 load4(const uint8_t* p) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    return {_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
  }
  static BL_INLINE void dot4(Acc4& acc, const W4& w, const A4& a) {
    dot8(acc, w.low, a.first);
    dot8(acc, w.high, a.second);
  }
  struct Fold {
    __m512i step, offset;
  };
  static BL_INLINE __m512i bytes_to_lanes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static BL_INLINE Fold load_fold(const uint8_t* p) {
    const __m512i step = bytes_to_lanes(p);
    return {step, _mm512_add_epi32(bytes_to_lanes(p + 16), _mm512_slli_epi32(step, 3))};
  }
  static BL_INLINE void fold4(Acc& acc, Acc4 part, const Fold& f, int32_t sum) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(part), "v"(f.step));
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(f.offset), "v"(_mm512_set1_epi32(sum)));
  }

  typedef Fold Unpack;  // 16-bit steps, bytes of offsets
  static BL_INLINE Unpack load_unpack(const uint8_t* p) {
    const __m512i words = _mm512_set4_epi32(0xff0cff0c, 0xff08ff08, 0xff04ff04, 0xff00ff00);
    const __m512i bytes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0x00000000);
    return {_mm512_shuffle_epi8(bytes_to_lanes(p), words), _mm512_shuffle_epi8(bytes_to_lanes(p + 16), bytes)};
  }
  static BL_INLINE void unpack(const Unpack& u, const uint8_t* from, uint8_t* to) {
    const W4 w = load4(from);
    _mm512_storeu_si512(to, _mm512_add_epi8(_mm512_mullo_epi16(w.low, u.step), u.offset));
    _mm512_storeu_si512(to + 64, _mm512_add_epi8(_mm512_mullo_epi16(w.high, u.step), u.offset));
  }

  typedef __m512 AccF;
  static BL_INLINE AccF zerof() { return _mm512_setzero_ps(); }
  static BL_INLINE F16 valuef(AccF acc) { return reinterpret_cast<F16>(acc); }
#if defined(__AVX512BF16__)
  typedef __m512bh WB;
  typedef __m512bh AB;
  static constexpr bool kFloats = false;
  typedef uint16_t ActB;
  static BL_INLINE const uint16_t* activationsb(const Activations& a) { return a.bf16; }
  static BL_INLINE WB loadb(const uint8_t* p) { return reinterpret_cast<WB>(_mm512_loadu_si512(p)); }
  static BL_INLINE AB splatb(const uint16_t* p) {
    return reinterpret_cast<AB>(_mm512_set1_epi32(load_as<int32_t>(p)));
  }
  static BL_INLINE void dotb(AccF& acc, WB w, AB a) { acc = _mm512_dpbf16_ps(acc, w, a); }
#else
  struct WB {
    __m512 first, second;  // of each pair
  };
  struct AB {
    __m512 first, second;
  };
  static constexpr bool kFloats = true;
  typedef float ActB;
  static BL_INLINE const float* activationsb(const Activations& a) { return a.floats; }
  static BL_INLINE WB loadb(const uint8_t* p) {
    const __m512i w = _mm512_loadu_si512(p), high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_castsi512_ps(_mm512_and_si512(w, high))};
  }
  static BL_INLINE AB splatb(const float* p) { return {_mm512_set1_ps(p[0]), _mm512_set1_ps(p[1])}; }
  static BL_INLINE void dotb(AccF& acc, const WB& w, const AB& a) {  // as assembly: see dot8
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(w.first), "v"(a.first));
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(w.second), "v"(a.second));
  }
#endif
};

}  // namespace
}  // namespace baseload
