// What a processor can do at most, measured: products of registers with themselves, and a walk over memory.
#pragma once

#include "matmul/blocks.h"

namespace baseload {
namespace {

// The sum is used here, as far as the compiler knows: it stays in its registers. Without this GCC 12 wrote AVX2's float
// sums to memory and back, and what was measured was half of what the processor can.
template <class V>
BL_INLINE void keep(V& sum) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  __asm__ volatile("" : "+x"(sum.lo), "+x"(sum.hi));
#else
  (void)sum;
#endif
}

template <class V>
BL_INLINE V unknown(V value) {  // so that sums that begin alike are not computed as one
  __asm__ volatile("" : "+m"(value));
  return value;
}

template <class V>
BL_INLINE const V* anew(const V* from) {  // what is read there is not known from before
  __asm__ volatile("" : "+r"(from) : : "memory");
  return from;
}

template <class I>
struct Speed {
  static constexpr int kMost = I::kRows * I::kPanels < 12 ? I::kRows * I::kPanels : 12;
#if defined(__AVX512F__)
  static constexpr int kChains = kMost, kFloatChains = 16;  // VDPBF16PS takes longer than VPDPBUSD
#else
  // Sums take two registers, operands six: of sixteen.
  static constexpr int kChains = I::kWide ? 3 : kMost, kFloatChains = kMost < 4 ? kMost : 4;
#endif

  // Where products are added by an instruction of its own, operands must seem new for every sum: else the compiler adds
  // the same products to all of them.
  static BL_INLINE auto operand8(const typename I::A8& known, const typename I::Act* from) {
#if defined(__AVX2__)
    typename I::A8 a = known;
    if constexpr (I::kWide) __asm__ volatile("" : "+x"(a.even), "+x"(a.odd));
    (void)from;
    return a;
#else
    (void)known;
    return I::splat8(anew(from));
#endif
  }
  static BL_INLINE auto operandf(const typename I::AB& known, const typename I::ActB* from) {
#if defined(__AVX2__)
    (void)from;
    return known;
#else
    (void)known;
    return I::splatb(anew(from));
#endif
  }

  // Activations are loaded anew in every round: that takes a load's unit, not one of those that are measured.
  template <int N, class Acc, class A, class Dot>
  static BL_INLINE int64_t chains(int64_t rounds, int64_t each, Acc zero, const A* from, const Dot& dot) {
    Acc acc[N];
#pragma GCC unroll 32
    for (int c = 0; c < N; ++c) acc[c] = unknown(zero);
    for (int64_t i = 0; i < rounds; ++i) dot(acc, anew(from));
#pragma GCC unroll 32
    for (int c = 0; c < N; ++c) unknown(acc[c]);
    return rounds * N * each;
  }

  static int64_t peak(Scheme scheme, int64_t rounds) {
    alignas(64) uint8_t w[64];
    alignas(64) int16_t a[32];
    std::memset(w, 1, sizeof(w));
    std::memset(a, 0, sizeof(a));
    __asm__ volatile("" : : "r"(w), "r"(a) : "memory");
    if (scheme == Scheme::kBf16) {
      typedef typename I::ActB A;
      const typename I::WB wv = I::loadb(w);
      const auto dot = [&](typename I::AccF* acc, const A* from) __attribute__((always_inline)) {
        const typename I::AB av = I::splatb(from);
#pragma GCC unroll 32
        for (int c = 0; c < kFloatChains; ++c) {
          I::dotb(acc[c], wv, operandf(av, from));
          keep(acc[c]);
        }
      };
      return chains<kFloatChains>(rounds, 32, I::zerof(), reinterpret_cast<const A*>(a), dot);
    }
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (I::kWide) {  // 4-bit codes are multiplied as bytes there, twice as many at once as widened ones
      if (scheme == Scheme::kW4) return peak4(rounds, w, reinterpret_cast<const int8_t*>(a));
    }
#endif
    typedef typename I::Act A;
    const typename I::W8 wv = I::load8(w);
    const auto dot = [&](typename I::Acc* acc, const A* from) __attribute__((always_inline)) {
      const typename I::A8 av = I::splat8(from);
#pragma GCC unroll 32
      for (int c = 0; c < kChains; ++c) {
        I::dot8(acc[c], wv, operand8(av, from));
        keep(acc[c]);
      }
    };
    return chains<kChains>(rounds, 64, I::zero(), reinterpret_cast<const A*>(a), dot);
  }

#if defined(__AVX2__) && !defined(__AVX512F__)
  static int64_t peak4(int64_t rounds, const uint8_t* w, const int8_t* a) {
    const typename I::W4 wv = I::load4(w);
    const auto dot = [&](typename I::Acc4* acc, const int8_t* from) __attribute__((always_inline)) {
      typename I::A4 av = I::splat4(from);
#pragma GCC unroll 32
      for (int c = 0; c < kChains; ++c) {
        __asm__ volatile("" : "+x"(av.first), "+x"(av.second));
        I::dot4(acc[c], wv, av);
        keep(acc[c]);
      }
    };
    return chains<kChains>(rounds, 128, I::start4(nullptr), a, dot);
  }
#endif

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
};

}  // namespace
}  // namespace baseload
