// The operations in plain C++.
#pragma once

#include "matmul/kernels.h"
#include "matmul/vectors.h"

namespace baseload {
namespace {

struct Portable {
  static constexpr int kRows = 4, kRows4 = 2, kPanels = 1, kDirect4 = 2;
  static constexpr bool kWide = false;

  typedef I16 Acc;
  typedef int8_t Act;
  struct W8 {
    const uint8_t* at;
  };
  struct A8 {
    const int8_t* at;
  };
  static const int8_t* activations(const Activations& a) { return a.codes; }
  static I16 zero() { return splat(0); }
  static I16 value(const Acc& acc) { return acc; }
  static W8 load8(const uint8_t* p) { return {p}; }
  static A8 splat8(const int8_t* p) { return {p}; }
  static void dot8(Acc& acc, const W8& w, const A8& a) {
    for (int o = 0; o < 16; ++o) {
      int32_t sum = 0;
      for (int t = 0; t < 4; ++t) sum += w.at[4 * o + t] * a.at[t];
      acc[o] += sum;
    }
  }

  typedef I16 Acc4;
  struct W4 {
    const uint8_t* at;
  };
  struct Fold {
    const uint8_t* at;
  };
  typedef A8 A4;
  static Acc4 start4(const int32_t*) { return splat(0); }
  static A4 splat4(const int8_t* p) { return {p}; }
  static W4 load4(const uint8_t* p) { return {p}; }
  static void dot4(Acc4& acc, const W4& w, const A4& given) {
    const int8_t* a = given.at;
    for (int o = 0; o < 16; ++o) {
      int32_t sum = 0;
      for (int t = 0; t < 4; ++t) sum += (w.at[4 * o + t] & 15) * a[t] + (w.at[4 * o + t] >> 4) * a[4 + t];
      acc[o] += sum;
    }
  }
  static Fold load_fold(const uint8_t* p) { return {p}; }
  static void fold4(Acc& acc, const Acc4& part, const Fold& f, int32_t sum) {
    for (int o = 0; o < 16; ++o) acc[o] += part[o] * f.at[o] + sum * f.at[16 + o];
  }
  typedef Fold Unpack;
  static Unpack load_unpack(const uint8_t* p) { return {p}; }
  static void unpack(const Unpack& u, const uint8_t* from, uint8_t* to) {
    for (int i = 0; i < 64; ++i) {
      to[i] = static_cast<uint8_t>((from[i] & 15) * u.at[i / 4] + u.at[16 + i / 4]);
      to[64 + i] = static_cast<uint8_t>((from[i] >> 4) * u.at[i / 4] + u.at[16 + i / 4]);
    }
  }

  typedef F16 AccF;
  struct WB {
    F16 first, second;
  };
  struct AB {
    float first, second;
  };
  static float widen(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  static constexpr bool kFloats = false;
  typedef uint16_t ActB;
  static const uint16_t* activationsb(const Activations& a) { return a.bf16; }
  static F16 zerof() { return splat(0.0f); }
  static F16 valuef(const AccF& acc) { return acc; }
  static WB loadb(const uint8_t* p) {
    const U16 both = load_as<U16>(p);
    return {reinterpret_cast<F16>(both << 16), reinterpret_cast<F16>(both & 0xffff0000u)};
  }
  static AB splatb(const uint16_t* p) { return {widen(p[0]), widen(p[1])}; }
  static void dotb(AccF& acc, const WB& w, const AB& a) {
    acc = acc + w.first * splat(a.first);
    acc = acc + w.second * splat(a.second);
  }
};

}  // namespace

}  // namespace baseload
