// What a processor can do at most, measured: products of registers with themselves, and a walk over memory.
#pragma once

#include "matmul/blocks.h"

namespace baseload {
namespace {

template <class I>
struct Speed {
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
};

}  // namespace
}  // namespace baseload
