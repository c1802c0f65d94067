// AMX tiles behind a thin interface, so that the same kernel runs on tiles or on plain memory.
//
// Eight tiles of at most 16 rows of 64 bytes. A kernel configures the rows of tiles 0 to 7 (64 bytes wide each), loads,
// multiplies and stores them by number, and releases them. RealTiles was run by its authors on an emulated processor
// (docs/decisions/0024-amx-tiles.md), never on hardware: it is used only after amx_works() (matmul/check.h) has compared
// it with plain C++ in the same process. Only a translation unit built with -mamx-tile sees RealTiles.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define BASELOAD_REAL_TILES 1
#endif

namespace baseload {
namespace {

struct TileConfig {  // palette 1, as LDTILECFG reads it
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int row_count) {
    column_bytes[tile] = 64;
    rows[tile] = static_cast<uint8_t>(row_count);
  }
  static TileConfig whole() {  // all eight tiles of 16 rows
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, 16);
    return config;
  }
};
static_assert(sizeof(TileConfig) == 64);

#ifdef BASELOAD_REAL_TILES

struct RealTiles {
  // Written as assembly because the compiler's intrinsics want the tile's number as a literal. The memory clobber keeps
  // the stores to the configuration, which GCC 12 otherwise takes for dead, and orders loads and stores of tiles.
  static inline void configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static inline void release() { __asm__ volatile("tilerelease" : : : "memory"); }
  template <int T>
  static inline void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  template <int T>
  static inline void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static inline void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  static inline void dot_int8() {  // C += A (signed) · B (unsigned)
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  static inline void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

#endif

struct EmulatedTiles {
  struct State {
    TileConfig config;
    uint8_t data[8][16][64];
  };
  static State& state() {
    static thread_local State one;
    return one;
  }

  static void configure(const TileConfig& config) {
    state().config = config;
    std::memset(state().data, 0, sizeof(state().data));
  }
  static void release() { state().config = TileConfig(); }
  template <int T>
  static void zero() {
    std::memset(state().data[T], 0, sizeof(state().data[T]));
  }
  template <int T>
  static void load(const void* from, int64_t stride) {
    for (int row = 0; row < state().config.rows[T]; ++row) {
      std::memcpy(state().data[T][row], static_cast<const uint8_t*>(from) + row * stride, 64);
    }
  }
  template <int T>
  static void store(void* to, int64_t stride) {
    for (int row = 0; row < state().config.rows[T]; ++row) {
      std::memcpy(static_cast<uint8_t*>(to) + row * stride, state().data[T][row], 64);
    }
  }
  template <int C, int A, int B>
  static void dot_int8() {
    State& s = state();
    for (int m = 0; m < s.config.rows[C]; ++m) {
      int32_t c[16];
      std::memcpy(c, s.data[C][m], 64);
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 16; ++n) {
          for (int t = 0; t < 4; ++t) c[n] += static_cast<int8_t>(s.data[A][m][4 * k + t]) * s.data[B][k][4 * n + t];
        }
      }
      std::memcpy(s.data[C][m], c, 64);
    }
  }
  template <int C, int A, int B>
  static void dot_bf16() {  // even and odd places are summed apart, then joined (Intel SDM, TDPBF16PS)
    State& s = state();
    const auto widen = [](const uint8_t* at) {
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, at, 2);
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    };
    for (int m = 0; m < s.config.rows[C]; ++m) {
      float c[16];
      std::memcpy(c, s.data[C][m], 64);
      for (int n = 0; n < 16; ++n) {
        float even = 0.0f, odd = 0.0f;
        for (int k = 0; k < 16; ++k) {
          even += widen(&s.data[A][m][4 * k]) * widen(&s.data[B][k][4 * n]);
          odd += widen(&s.data[A][m][4 * k + 2]) * widen(&s.data[B][k][4 * n + 2]);
        }
        c[n] += even + odd;
      }
      std::memcpy(s.data[C][m], c, 64);
    }
  }
};

}  // namespace
}  // namespace baseload
