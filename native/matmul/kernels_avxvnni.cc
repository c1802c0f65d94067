// AVX2 with VPDPBUSD on 256-bit registers (Alder Lake and later, Zen 5).
#include "matmul/avx2_ops.h"
#include "matmul/impl.h"

namespace baseload {
namespace {

struct AvxVnni : Avx2Common {
  static constexpr int kRows = 6, kRows4 = 4, kPanels = 1, kDirect4 = 4;
  static constexpr bool kWide = false;

  typedef int8_t Act;
  typedef Two W8;
  typedef __m256i A8;
  static BL_INLINE const int8_t* activations(const Activations& a) { return a.codes; }
  static BL_INLINE W8 load8(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
  static BL_INLINE A8 splat8(const int8_t* p) { return splat_dword(p); }
  static BL_INLINE void dot8(Two& acc, const W8& w, const A8& a) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.lo) : "x"(w.lo), "x"(a));
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.hi) : "x"(w.hi), "x"(a));
  }
};

}  // namespace

const Kernels* kernels_avxvnni() { return Impl<AvxVnni>::table("avxvnni"); }

}  // namespace baseload
