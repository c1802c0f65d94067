// Sixteen lanes without any instruction set asked for: the reference.
#pragma once

#include <cstdint>

#include "attention/layout.h"

namespace {

typedef uint32_t __attribute__((may_alias)) Words;  // pairs of 16-bit numbers

struct S {
  struct F {
    float v[16];
  };
  struct I {
    uint32_t v[16];
  };
  static constexpr int kR = 1, kRInt = 1, kT = 1, kTFew = 1;
  static constexpr bool kFloats = false;
#ifdef BASELOAD_ATTENTION_TILES
  static constexpr bool kTiles = true;
#else
  static constexpr bool kTiles = false;
#endif

  static float of_bits(uint32_t u) {
    float x;
    __builtin_memcpy(&x, &u, 4);
    return x;
  }
  template <typename G>
  static F each(G g) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = g(i);
    return out;
  }
  template <typename G>
  static I eachi(G g) {
    I out;
    for (int i = 0; i < 16; ++i) out.v[i] = g(i);
    return out;
  }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static void store(float* p, F x) {
    for (int i = 0; i < 16; ++i) p[i] = x.v[i];
  }
  static F set(float x) {
    return each([&](int) { return x; });
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F max(F a, F b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static float first(F x) { return x.v[0]; }
  static float highest(F x) {
    float out = x.v[0];
    for (int i = 1; i < 16; ++i) out = x.v[i] > out ? x.v[i] : out;
    return out;
  }
  static float sum(F x) {
    float out = 0;
    for (int i = 0; i < 16; ++i) out += x.v[i];
    return out;
  }
  static F keep_lanes(F x, int from, int to, F other) {
    return each([&](int i) { return i >= from && i < to ? x.v[i] : other.v[i]; });
  }
  static F exp2(F x) {
    return each([&](int i) { return x.v[i] < -125.0f ? 0.0f : __builtin_exp2f(x.v[i]); });
  }
  static F weight2(F x) { return exp2(x); }
  static F absolute(F x) {
    return each([&](int i) { return __builtin_fabsf(x.v[i]); });
  }
  static F below_or_zero(F x, float bound) {  // where |x| < bound, else 0
    return each([&](int i) { return __builtin_fabsf(x.v[i]) < bound ? x.v[i] : 0.0f; });
  }
  static void store_bf16(uint16_t* p, F x) {
    for (int i = 0; i < 16; ++i) {
      uint32_t u;
      __builtin_memcpy(&u, &x.v[i], 4);
      p[i] = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }

  template <int kStep>
  static F butterfly(F x) {
    return each([&](int i) { return (i & kStep) ? x.v[i ^ kStep] - x.v[i] : x.v[i] + x.v[i ^ kStep]; });
  }
  static F butterfly1(F x) { return butterfly<1>(x); }
  static F butterfly2(F x) { return butterfly<2>(x); }
  static F butterfly4(F x) { return butterfly<4>(x); }
  static F butterfly8(F x) { return butterfly<8>(x); }

  static I loadi(const void* p) {
    I out;
    __builtin_memcpy(out.v, p, 64);
    return out;
  }
  static I seti(uint32_t x) {
    return eachi([&](int) { return x; });
  }
  static void storei(void* p, I x) { __builtin_memcpy(p, x.v, 64); }
  static void store_bytes(uint8_t* p, I x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(x.v[i]);
  }
  static F set_from(const float* p) { return set(*p); }
  static I set_from(const Words* p) { return seti(*p); }
  static void add_product(F* sum, F x, F y) { *sum = fma(x, y, *sum); }
  static F low_bf16(const void* p) {
    const I x = loadi(p);
    return each([&](int i) { return of_bits(x.v[i] << 16); });
  }
  static F high_bf16(const void* p) {
    const I x = loadi(p);
    return each([&](int i) { return of_bits(x.v[i] & 0xffff0000u); });
  }
  // Bytes less 128 as bfloat16: of each lane the first two to `first`, the others to `second`.
  static void widen_bytes(I x, void* first, void* second) {
    uint16_t out[2][32];
    for (int i = 0; i < 64; ++i) {
      const float value = static_cast<float>(static_cast<int32_t>(x.v[i / 4] >> i % 4 * 8 & 255u) - 128);
      uint32_t u;
      __builtin_memcpy(&u, &value, 4);
      out[i % 4 / 2][i / 4 * 2 + i % 2] = static_cast<uint16_t>(u >> 16);
    }
    __builtin_memcpy(first, out[0], 64);
    __builtin_memcpy(second, out[1], 64);
  }
  static I addi(I a, I b) {
    return eachi([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I subi(I a, I b) {
    return eachi([&](int i) { return a.v[i] - b.v[i]; });
  }
  static int32_t sumi(I x) {
    uint32_t out = 0;
    for (int i = 0; i < 16; ++i) out += x.v[i];
    return static_cast<int32_t>(out);
  }
  static F to_float(I x) {
    return each([&](int i) { return static_cast<float>(static_cast<int32_t>(x.v[i])); });
  }
  static I to_int(F x) {
    return eachi([&](int i) {  // what is not a number gives 0 here
      const float v = __builtin_rintf(x.v[i]);
      return v >= -2.0e9f && v <= 2.0e9f ? static_cast<uint32_t>(static_cast<int32_t>(v)) : 0u;
    });
  }
  static I even_bytes(I x) {
    return eachi([&](int i) { return x.v[i] & 0x00ff00ffu; });
  }
  static I odd_bytes(I x) {
    return eachi([&](int i) { return x.v[i] >> 8 & 0x00ff00ffu; });
  }
  static I dot_i16(I acc, I a, I b) {
    const auto low = [](uint32_t x) { return static_cast<int32_t>(static_cast<int16_t>(x & 0xffffu)); };
    const auto high = [](uint32_t x) { return static_cast<int32_t>(static_cast<int16_t>(x >> 16)); };
    return eachi([&](int i) {
      return acc.v[i] + static_cast<uint32_t>(low(a.v[i]) * low(b.v[i])) +
             static_cast<uint32_t>(high(a.v[i]) * high(b.v[i]));
    });
  }
  static F dot_bf16(F acc, I a, I b) {
    return each([&](int i) {
      const float low = of_bits(a.v[i] << 16) * of_bits(b.v[i] << 16);
      return acc.v[i] + low + of_bits(a.v[i] & 0xffff0000u) * of_bits(b.v[i] & 0xffff0000u);
    });
  }
  static void store_widening(uint16_t* p, I x) {
    static const int order[4] = {0, 2, 1, 3};
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(x.v[i / 4 * 4 + order[i % 4]]);
  }
};

}  // namespace
