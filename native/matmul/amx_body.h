// The kernels on tiles: T is RealTiles or EmulatedTiles, I the vector operations for what is done beside them, and
// kVectors the kernels that take what tiles do not.
//
// Two tiles of 16 rows of activations times two of 16 panels' rows: four sums, each loaded tile used twice. The packed
// layout is the tile layout, so weights are loaded as they lie. Tiles are configured once per task, all of 16 rows:
// what lies behind the last row is multiplied too and dropped. The tile unit and the vector units work side by side:
// while one block is multiplied, the block before is scaled and written a few rows per step, and 4-bit weights are
// unpacked a few steps ahead. Few rows of integers take the vector kernels (same bits: integer sums are exact);
// bfloat16 always takes tiles, because its sums must not depend on the number of rows.
#pragma once

#include "common/tile.h"
#include "matmul/blocks.h"

namespace baseload {
namespace {

template <class T, class I, const Kernels* (*kVectors)()>
struct AmxImpl {
  static constexpr int64_t kVectorRows = 4;
  static constexpr int64_t kTileBytes = 1024;
  static constexpr int64_t kLead = 4;  // steps between unpacking and use: more bytes than wait in a store buffer

  static void run(const Block& b) {
    const int64_t rows = b.row_end - b.row_begin;
    if (rows <= 0) return;
    const bool bf16 = b.w.scheme == Scheme::kBf16;
    if (!bf16 && rows <= kVectorRows) return kVectors()->run(b);
    T::configure(TileConfig::whole());
    const int64_t paired = b.panel_end - (b.panel_end - b.panel_begin) % 2;
    if (bf16) {
      panels<true, 2>(b, b.panel_begin, paired);
      panels<true, 1>(b, paired, b.panel_end);
    } else {
      panels<false, 2>(b, b.panel_begin, paired);
      panels<false, 1>(b, paired, b.panel_end);
    }
    T::release();
  }

  struct Walk {  // one block: activations, weights, and which way K is walked
    const uint8_t* a;
    int64_t line;    // bytes from row to row
    const uint8_t* w;
    int64_t stride;  // bytes from panel to panel
    int64_t steps;
    bool back;
    bool unpack;     // w is written while it is walked
  };

  struct Waiting {  // sums of the block before, [rows][P][16], not yet written out
    const uint8_t* sums = nullptr;
    int64_t row = 0, p = 0, rows = 0;
  };

  struct Ahead {  // what is fetched from memory at each step: lines at `at` and at `at` + gap; a jump after step `turn`
    const uint8_t* at = nullptr;
    int64_t gap = 0, lines = 0, turn = -1, jump = 0;
  };

  template <bool kBf16, int P>
  static void panels(const Block& b, int64_t from, int64_t to) {
    alignas(64) uint8_t sums[2][kTileRows * P * 64];
    const int64_t width = kBf16 ? 2 : 1, line = b.a.lda * width;
    const int64_t blocks = (b.row_end - b.row_begin + kTileRows - 1) / kTileRows;
    const bool four = b.w.scheme == Scheme::kW4;
    const uint8_t* const codes = reinterpret_cast<const uint8_t*>(b.a.codes);
    const uint8_t* const a = kBf16 ? reinterpret_cast<const uint8_t*>(b.a.bf16) : codes;
    Walk walk;
    walk.line = line;
    walk.stride = four ? b.w.kp * kPanel : b.w.panel_bytes();
    walk.steps = b.w.kp * width / 64;
    Waiting waiting;
    int turn = 0;
    for (int64_t p = from; p < to; p += P) {
      walk.w = four ? b.scratch : b.w.panel(p);
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t row = b.row_begin + i * kTileRows, left = b.row_end - row, rows = left < kTileRows ? left : kTileRows;
        walk.a = a + row * line;
        // There and back: what was used last, and still lies near, is used first. Floats are summed in one order only.
        walk.back = !kBf16 && i % 2 == 1;
        walk.unpack = four && i == 0;
        const bool own = blocks == 1 || (p == from && i == 0);
        const Ahead ahead = own            ? ahead_in<P>(b.w, p, walk.steps)
                            : p + P < to   ? ahead_over<P>(b.w, p + P, walk.steps, i, blocks)
                                           : Ahead();
        rows > 16 ? multiply<kBf16, P, true>(b, walk, p, ahead, waiting)
                  : multiply<kBf16, P, false>(b, walk, p, ahead, waiting);
        store<P>(sums[turn], rows > 16);
        waiting = {sums[turn], row, p, rows};
        turn = 1 - turn;
      }
    }
    for (int64_t i = 0; i < waiting.rows; ++i) finish_row<kBf16, P>(b, waiting, i);
  }

  template <bool kBf16, int P, bool kTwo>
  static void multiply(const Block& given, const Walk& walk, int64_t p, const Ahead& ahead, const Waiting& waiting) {
    if (!kBf16 && walk.unpack) return steps<kBf16, P, kTwo, !kBf16>(given, walk, p, ahead, waiting);
    steps<kBf16, P, kTwo, false>(given, walk, p, ahead, waiting);
  }

  template <bool kBf16, int P, bool kTwo, bool kUnpack>
  static void steps(const Block& given, const Walk& walk, int64_t p, const Ahead& ahead, const Waiting& waiting) {
    const Block b = given;  // copies: what another function may see is read again after each tile
    const Waiting before = waiting;
    const int64_t count = walk.steps, line = walk.line, stride = walk.stride, each = (before.rows + count - 1) / count;
    const int64_t da = walk.back ? -64 : 64, dw = walk.back ? -kTileBytes : kTileBytes;
    const uint8_t* a = walk.a + (walk.back ? (count - 1) * 64 : 0);
    const uint8_t* w = walk.w + (walk.back ? (count - 1) * kTileBytes : 0);
    const uint8_t* at = ahead.at;
    const int64_t gap = ahead.gap, lines = ahead.lines, turn = ahead.turn, jump = ahead.jump;
    if constexpr (kUnpack) {
      for (int64_t s = 0; s < kLead && s < count; ++s) unpack<P>(b, p, s);
    }
    T::template zero<0>();
    if constexpr (P == 2) T::template zero<1>();
    if constexpr (kTwo) T::template zero<2>();
    if constexpr (kTwo && P == 2) T::template zero<3>();
    int64_t done = 0;
    for (int64_t s = 0; s < count; ++s) {
      if constexpr (kUnpack) {
        if (s + kLead < count) unpack<P>(b, p, s + kLead);
      }
      T::template load<6>(w, 64);
      T::template load<4>(a, line);
      dot<kBf16, 0, 4, 6>();
      if constexpr (P == 2) {
        T::template load<7>(w + stride, 64);
        dot<kBf16, 1, 4, 7>();
      }
      if constexpr (kTwo) {
        T::template load<5>(a + 16 * line, line);
        dot<kBf16, 2, 5, 6>();
        if constexpr (P == 2) dot<kBf16, 3, 5, 7>();
      }
      a += da;
      w += dw;
      for (int64_t i = 0; i < lines; ++i, at += 64) {
        fetch(at);
        if constexpr (P == 2) fetch(at + gap);
      }
      if (s == turn) at += jump;
      for (int64_t i = 0; i < each && done < before.rows; ++i, ++done) finish_row<kBf16, P>(b, before, done);
    }
  }

  template <int P>
  static BL_INLINE void store(uint8_t* sums, bool two) {
    T::template store<0>(sums, P * 64);
    if constexpr (P == 2) T::template store<1>(sums + 64, P * 64);
    if (!two) return;
    T::template store<2>(sums + 16 * P * 64, P * 64);
    if constexpr (P == 2) T::template store<3>(sums + 16 * P * 64 + 64, P * 64);
  }

  template <bool kBf16, int P>
  static BL_INLINE void finish_row(const Block& b, const Waiting& waiting, int64_t index) {
    const uint8_t* from = waiting.sums + index * P * 64;
    if constexpr (kBf16) {
      F16 v[P];
      for (int j = 0; j < P; ++j) v[j] = load_as<F16>(from + j * 64);
      finish<P>(b, waiting.row + index, waiting.p, v);
    } else {
      I16 v[P];
      for (int j = 0; j < P; ++j) v[j] = load_as<I16>(from + j * 64);
      finish_int<P>(b, waiting.row + index, waiting.p, v);
    }
  }

  // One step's tiles of 8-bit codes from 4-bit panels p …
  template <int P>
  static BL_INLINE void unpack(const Block& b, int64_t p, int64_t step) {
    const int shift = b.w.group == 32 ? 0 : b.w.group == 64 ? 1 : 2;
    for (int j = 0; j < P; ++j) {
      const uint8_t* from = b.w.panel(p + j) + step * (kTileBytes / 2);
      uint8_t* to = b.scratch + j * b.w.kp * kPanel + step * kTileBytes;
      for (int half = 0; half < 2; ++half) {
        const typename I::Unpack u = I::load_unpack(b.w.panel_groups(p + j) + ((2 * step + half) >> shift) * 2 * kPanel);
#pragma GCC unroll 4
        for (int v = 4 * half; v < 4 * half + 4; ++v) I::unpack(u, from + 64 * v, to + 128 * v);
      }
    }
  }

  // This block's own panels, and behind their end the next ones.
  template <int P>
  static Ahead ahead_in(const Matrix& w, int64_t p, int64_t steps) {
    const int64_t bytes = w.panel_bytes(), lines = bytes / steps / 64;
    Ahead ahead{w.panel(p) + kAhead, (P - 1) * bytes, lines, (bytes - kAhead) / (lines * 64) - 1, (P - 1) * bytes};
    if (bytes <= kAhead) ahead.at += (P - 1) * bytes;
    return ahead;
  }

  // The next panels, a part of them in each of `blocks` blocks.
  template <int P>
  static Ahead ahead_over(const Matrix& w, int64_t next, int64_t steps, int64_t index, int64_t blocks) {
    const int64_t bytes = w.panel_bytes(), lines = (bytes + 64 * steps * blocks - 1) / (64 * steps * blocks);
    return {w.panel(next) + index * steps * lines * 64, (P - 1) * bytes, lines, -1, 0};
  }

  template <bool kBf16, int C, int A, int B>
  static BL_INLINE void dot() {
    if constexpr (kBf16) {
      T::template dot_bf16<C, A, B>();
    } else {
      T::template dot_int8<C, A, B>();
    }
  }

  static int64_t peak(Scheme scheme, int64_t rounds) {
    T::configure(TileConfig::whole());
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
    static const Kernels kernels{name, false, false, true, kVectors()->prepare_row, &run, &peak, kVectors()->read};
    return &kernels;
  }
};

}  // namespace
}  // namespace baseload
