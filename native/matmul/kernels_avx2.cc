// AVX2 alone. 8-bit weights are widened to 16 bits (a byte product of the full range would saturate in VPMADDUBSW),
// once for all rows of a block; activations come widened.
#include "matmul/avx2_ops.h"
#include "matmul/impl.h"

namespace baseload {
namespace {

struct Avx2 : Avx2Common {
  static constexpr int kRows = 4, kRows4 = 4, kPanels = 1, kDirect4 = 1 << 30;
  static constexpr bool kWide = true;

  typedef int16_t Act;
  struct W8 {
    Two even, odd;
  };
  struct A8 {
    __m256i even, odd;
  };
  static BL_INLINE const int16_t* activations(const Activations& a) { return a.wide; }
  static BL_INLINE W8 load8(const uint8_t* p) {
    const __m256i a = load256(p), b = load256(p + 32), low = _mm256_set1_epi16(0xff);
    return {{_mm256_and_si256(a, low), _mm256_and_si256(b, low)}, {_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)}};
  }
  static BL_INLINE A8 splat8(const int16_t* p) { return {splat_dword(p), splat_dword(p + 2)}; }
  static BL_INLINE void dot8(Two& acc, const W8& w, const A8& a) {
    acc.lo = _mm256_add_epi32(acc.lo, _mm256_madd_epi16(w.even.lo, a.even));
    acc.hi = _mm256_add_epi32(acc.hi, _mm256_madd_epi16(w.even.hi, a.even));
    acc.lo = _mm256_add_epi32(acc.lo, _mm256_madd_epi16(w.odd.lo, a.odd));
    acc.hi = _mm256_add_epi32(acc.hi, _mm256_madd_epi16(w.odd.hi, a.odd));
  }
};

}  // namespace

const Kernels* kernels_avx2() { return Impl<Avx2>::table("avx2"); }

}  // namespace baseload
