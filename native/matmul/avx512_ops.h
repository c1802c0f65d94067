// Operations on 512-bit registers with VNNI and BF16; one register is one panel. Included only by translation units
// built for them.
#pragma once

#include <immintrin.h>

#include "matmul/impl.h"

namespace baseload {
namespace {

struct Avx512 {
  static constexpr int kRows = 12, kRows4 = 4, kPanels = 2, kDirect4 = 4;
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
  static BL_INLINE void dot8(Acc& acc, W8 w, A8 a) { acc = _mm512_dpbusd_epi32(acc, w, a); }

  typedef __m512i Acc4;
  struct W4 {
    __m512i low, high;
  };
  static BL_INLINE Acc4 zero4() { return _mm512_setzero_si512(); }
  static BL_INLINE W4 load4(const uint8_t* p) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    return {_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
  }
  static BL_INLINE void dot4(Acc4& acc, const W4& w, const int8_t* a) {
    acc = _mm512_dpbusd_epi32(acc, w.low, splat8(a));
    acc = _mm512_dpbusd_epi32(acc, w.high, splat8(a + 4));
  }
  struct Fold {
    __m512i step, offset;
  };
  static BL_INLINE __m512i bytes_to_lanes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static BL_INLINE Fold load_fold(const uint8_t* p) { return {bytes_to_lanes(p), bytes_to_lanes(p + 16)}; }
  static BL_INLINE void fold4(Acc& acc, Acc4 part, const Fold& f, int32_t sum) {
    acc = _mm512_add_epi32(acc, _mm512_mullo_epi32(part, f.step));
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(f.offset, _mm512_set1_epi32(sum & 0xffff)));  // |sum| <= 32 · 127
  }

  typedef Fold Unpack;  // 16-bit steps, bytes of offsets
  static BL_INLINE Unpack load_unpack(const uint8_t* p) {
    return {_mm512_mullo_epi32(bytes_to_lanes(p), _mm512_set1_epi32(0x00010001)),
            _mm512_mullo_epi32(bytes_to_lanes(p + 16), _mm512_set1_epi32(0x01010101))};
  }
  static BL_INLINE void unpack(const Unpack& u, const uint8_t* from, uint8_t* to) {
    const W4 w = load4(from);
    _mm512_storeu_si512(to, _mm512_add_epi8(_mm512_mullo_epi16(w.low, u.step), u.offset));
    _mm512_storeu_si512(to + 64, _mm512_add_epi8(_mm512_mullo_epi16(w.high, u.step), u.offset));
  }

  typedef __m512 AccF;
  typedef __m512bh WB;
  typedef __m512bh AB;
  static BL_INLINE AccF zerof() { return _mm512_setzero_ps(); }
  static BL_INLINE F16 valuef(AccF acc) { return reinterpret_cast<F16>(acc); }
  static BL_INLINE WB loadb(const uint8_t* p) { return reinterpret_cast<WB>(_mm512_loadu_si512(p)); }
  static BL_INLINE AB splatb(const uint16_t* p) {
    return reinterpret_cast<AB>(_mm512_set1_epi32(load_as<int32_t>(p)));
  }
  static BL_INLINE void dotb(AccF& acc, WB w, AB a) { acc = _mm512_dpbf16_ps(acc, w, a); }
};

}  // namespace
}  // namespace baseload
