// The kernels on tiles: T is RealTiles or EmulatedTiles, I the vector operations for everything around them.
//
// Two tiles of 16 rows of activations times two of 16 panels' rows: four sums, each loaded tile used twice. The packed
// layout is the tile layout, so weights are loaded as they lie. Few rows of integers take the vector kernels (same bits:
// integer sums are exact); bfloat16 always takes tiles, because its sums must not depend on the number of rows.
#pragma once

#include "common/tile.h"
#include "matmul/impl.h"

namespace baseload {
namespace {

template <class T, class I>
struct AmxImpl {
  static constexpr int64_t kRows = 32;
  static constexpr int64_t kVectorRows = 4;

  static void run(const Block& b) {
    const int64_t rows = b.row_end - b.row_begin;
    if (rows <= 0) return;
    const bool bf16 = b.w.scheme == Scheme::kBf16;
    if (!bf16 && rows <= kVectorRows) return Impl<I>::run(b);
    for (int64_t p = b.panel_begin; p < b.panel_end; p += 2) {
      const int count = p + 1 < b.panel_end ? 2 : 1;
      const uint8_t* w = b.w.panel(p);
      int64_t stride = b.w.panel_bytes();
      if (b.w.scheme == Scheme::kW4) {
        stride = b.w.kp * kPanel;
        for (int j = 0; j < count; ++j) Impl<I>::unpack4(b.w, p + j, b.scratch + j * stride);
        w = b.scratch;
      }
      const uint8_t* next = p + 4 <= b.panel_end ? b.w.panel(p + 2) : nullptr;
      Impl<I>::split_rows(b, kRows, [&](int64_t row, int64_t some, int64_t index, int64_t blocks) {
        const int64_t steps = b.w.kp * (bf16 ? 2 : 1) / 64;
        const Stream ahead = Impl<I>::next_only(next, 2 * b.w.panel_bytes(), steps, index, blocks);
        if (bf16) {
          count == 2 ? block<true, 2>(b, row, some, p, w, stride, ahead)
                     : block<true, 1>(b, row, some, p, w, stride, ahead);
        } else {
          count == 2 ? block<false, 2>(b, row, some, p, w, stride, ahead)
                     : block<false, 1>(b, row, some, p, w, stride, ahead);
        }
      });
    }
  }

  template <bool kBf16, int P>
  static void block(const Block& b, int64_t row, int64_t rows, int64_t p, const uint8_t* w, int64_t stride,
                    Stream ahead) {
    const int64_t first = rows < 16 ? rows : 16, second = rows - first;
    TileConfig config;
    for (int t = 0; t < 2; ++t) config.set(t, static_cast<int>(first));
    for (int t = 2; t < 4; ++t) config.set(t, static_cast<int>(second > 0 ? second : 1));
    config.set(4, static_cast<int>(first));
    config.set(5, static_cast<int>(second > 0 ? second : 1));
    config.set(6, 16);
    config.set(7, 16);
    T::configure(config);
    const int64_t line = b.a.kp * (kBf16 ? 2 : 1);
    const uint8_t* a = (kBf16 ? reinterpret_cast<const uint8_t*>(b.a.bf16) : reinterpret_cast<const uint8_t*>(b.a.codes)) +
                       row * line;
    second > 0 ? multiply<kBf16, P, true>(a, line, w, stride, ahead)
               : multiply<kBf16, P, false>(a, line, w, stride, ahead);
    alignas(64) uint8_t sums[32][P][64];
    T::template store<0>(sums[0][0], P * 64);
    if constexpr (P == 2) T::template store<1>(sums[0][1], P * 64);
    if (second > 0) {
      T::template store<2>(sums[16][0], P * 64);
      if constexpr (P == 2) T::template store<3>(sums[16][1], P * 64);
    }
    T::release();
    for (int64_t i = 0; i < rows; ++i) {
      if constexpr (kBf16) {
        F16 v[P];
        for (int j = 0; j < P; ++j) v[j] = load_as<F16>(sums[i][j]);
        finish<P>(b, row + i, p, v);
      } else {
        I16 v[P];
        for (int j = 0; j < P; ++j) v[j] = load_as<I16>(sums[i][j]);
        finish_int<P>(b, row + i, p, v);
      }
    }
  }

  template <bool kBf16, int C, int A, int B>
  static BL_INLINE void dot() {
    if constexpr (kBf16) {
      T::template dot_bf16<C, A, B>();
    } else {
      T::template dot_int8<C, A, B>();
    }
  }

  template <bool kBf16, int P, bool kTwo>
  static void multiply(const uint8_t* a, int64_t line, const uint8_t* w, int64_t stride, Stream ahead) {
    T::template zero<0>();
    if constexpr (P == 2) T::template zero<1>();
    if constexpr (kTwo) T::template zero<2>();
    if constexpr (kTwo && P == 2) T::template zero<3>();
    const uint8_t* next = ahead.from;
    for (int64_t s = 0; s < line / 64; ++s) {
      T::template load<6>(w + s * 1024, 64);
      T::template load<4>(a + s * 64, line);
      dot<kBf16, 0, 4, 6>();
      if constexpr (P == 2) {
        T::template load<7>(w + stride + s * 1024, 64);
        dot<kBf16, 1, 4, 7>();
      }
      if constexpr (kTwo) {
        T::template load<5>(a + 16 * line + s * 64, line);
        dot<kBf16, 2, 5, 6>();
        if constexpr (P == 2) dot<kBf16, 3, 5, 7>();
      }
      if (next) {
        for (int64_t at = 0; at < ahead.stride; at += 64) fetch(next + at);
        next += ahead.stride;
      }
    }
  }

  static int64_t peak(Scheme scheme, int64_t rounds) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) config.set(t, 16);
    T::configure(config);
    for (int64_t i = 0; i < rounds; ++i) {
      if (scheme == Scheme::kBf16) {
        four<true>();
      } else {
        four<false>();
      }
    }
    T::release();
    return rounds * 4 * 16 * 16 * (scheme == Scheme::kBf16 ? 32 : 64);
  }

  template <bool kBf16>
  static BL_INLINE void four() {
    dot<kBf16, 0, 4, 6>();
    dot<kBf16, 1, 4, 7>();
    dot<kBf16, 2, 5, 6>();
    dot<kBf16, 3, 5, 7>();
  }

  static const Kernels* table(const char* name) {
    static const Kernels kernels{name, false, false, &Impl<I>::prepare_row, &run, &peak, &Impl<I>::read};
    return &kernels;
  }
};

}  // namespace
}  // namespace baseload
