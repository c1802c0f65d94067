// One block of R rows of activations times P panels: R·P sums stay in registers while K is walked once, and each weight
// vector is loaded once for R rows. Integer sums are exact, so any order gives the same bits; float (bf16) sums follow
// one chain along K per output, whatever R and P are. A row's bits therefore never depend on its batch.
#pragma once

#include "matmul/results.h"

namespace baseload {
namespace {

constexpr int64_t kAhead = 4096;  // bytes a streamed panel is fetched ahead

struct Stream {  // what a block fetches for the next one: bytes [from + i·stride) at step i; none if null
  const uint8_t* from = nullptr;
  int64_t stride = 0;
};

BL_INLINE void fetch(const uint8_t* at) { __builtin_prefetch(at, 0, 3); }  // to the nearest: 1 to 4 % over one further

template <class I>
struct Blocks {
  // R rows × P panels of 8-bit weights; KU independent sums per output hide the latency where R·P is small.
  template <int R, int P, int KU>
  static void block8(const Block& b, int64_t row, int64_t p, const uint8_t* w, int64_t stride, Stream ahead) {
    typename I::Acc acc[KU][R][P];
    for (int u = 0; u < KU; ++u)
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < P; ++j) acc[u][i][j] = I::zero();
    const int64_t steps = b.a.kp / 4;
    const typename I::Act* a = I::activations(b.a) + row * b.a.lda;
    const int64_t lda = b.a.lda;
    int64_t s = 0;
    const auto step = [&](const uint8_t* fetched) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int u = 0; u < KU; ++u) {
        typename I::W8 wv[P];
#pragma GCC unroll 4
        for (int j = 0; j < P; ++j) {
          wv[j] = I::load8(w + j * stride + (s + u) * 64);
          if (fetched) fetch(fetched + j * stride + (s + u) * 64);
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          const typename I::A8 av = I::splat8(a + i * lda + 4 * (s + u));
#pragma GCC unroll 4
          for (int j = 0; j < P; ++j) I::dot8(acc[u][i][j], wv[j], av);
        }
      }
    };
    if (ahead.stride < 0) {  // stream: this block's own panels, then the next ones
      const int64_t turn = steps > kAhead / 64 ? steps - kAhead / 64 : 0;
      for (; s < turn; s += KU) step(w + kAhead);
      for (; s < steps; s += KU) step(w + kAhead + (P - 1) * stride);
    } else if (ahead.from) {
      const uint8_t* next = ahead.from;
      for (; s < steps; s += KU) {
        step(nullptr);
        fetch(next);
        next += ahead.stride * KU;
      }
    } else {
      for (; s < steps; s += KU) step(nullptr);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      I16 sums[P];
      for (int j = 0; j < P; ++j) {
        sums[j] = I::value(acc[0][i][j]);
        for (int u = 1; u < KU; ++u) sums[j] = sums[j] + I::value(acc[u][i][j]);
      }
      finish_int<P>(b, row + i, p, sums);
    }
  }

  // R rows × P panels of 4-bit weights without unpacking: sums per 32 of K, folded with the group's step and offset.
  template <int R, int P>
  static void block4(const Block& b, int64_t row, int64_t p) {
    typename I::Acc acc[R][P];
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < P; ++j) acc[i][j] = I::zero();
    const int64_t blocks = b.a.kp / kBlock4, per_group = b.w.group / kBlock4;
    const int64_t stride = b.w.panel_bytes(), group_stride = b.w.group_bytes();
    const uint8_t* w = b.w.panel(p);
    const uint8_t* groups = b.w.panel_groups(p);
    const int8_t* a = b.a.codes + row * b.a.lda;
    const int32_t* sums = b.a.sums + 2 * row * blocks;
    int64_t in_group = 0;
    for (int64_t k = 0; k < blocks; ++k) {
      const uint8_t* g = groups;
      if (++in_group == per_group) {
        in_group = 0;
        groups += 2 * kPanel;
      }
      // Ahead of each stream; past a panel's end, where the next P panels go on.
      const int64_t ahead = kAhead + (k * 256 + kAhead >= stride ? (P - 1) * stride : 0);
      typename I::Acc4 part[R][P];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < P; ++j) part[i][j] = I::start4(sums + 2 * (i * blocks + k));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        typename I::W4 wv[P];
#pragma GCC unroll 4
        for (int j = 0; j < P; ++j) {
          const uint8_t* at = w + j * stride + (4 * k + v) * 64;
          wv[j] = I::load4(at);
          fetch(at + ahead);
        }
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          const typename I::A4 av = I::splat4(a + i * b.a.lda + k * kBlock4 + 8 * v);
#pragma GCC unroll 4
          for (int j = 0; j < P; ++j) I::dot4(part[i][j], wv[j], av);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < P; ++j) {
        const typename I::Fold fold = I::load_fold(g + j * group_stride);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) I::fold4(acc[i][j], part[i][j], fold, sums[2 * (i * blocks + k)]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      I16 values[P];
      for (int j = 0; j < P; ++j) values[j] = I::value(acc[i][j]);
      finish_int<P>(b, row + i, p, values);
    }
  }

  template <int R, int P>
  static void blockb(const Block& b, int64_t row, int64_t p, Stream ahead) {
    typename I::AccF acc[R][P];
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < P; ++j) acc[i][j] = I::zerof();
    const int64_t steps = b.a.kp / 2, stride = b.w.panel_bytes(), lda = b.a.lda;
    const uint8_t* w = b.w.panel(p);
    const typename I::ActB* a = I::activationsb(b.a) + row * lda;
    int64_t s = 0;
    const auto step = [&](const uint8_t* fetched) __attribute__((always_inline)) {
      typename I::WB wv[P];
#pragma GCC unroll 4
      for (int j = 0; j < P; ++j) {
        wv[j] = I::loadb(w + j * stride + s * 64);
        if (fetched) fetch(fetched + j * stride + s * 64);
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const typename I::AB av = I::splatb(a + i * lda + 2 * s);
#pragma GCC unroll 4
        for (int j = 0; j < P; ++j) I::dotb(acc[i][j], wv[j], av);
      }
    };
    if (ahead.stride < 0) {
      const int64_t turn = steps > kAhead / 64 ? steps - kAhead / 64 : 0;
      for (; s < turn; ++s) step(w + kAhead);
      for (; s < steps; ++s) step(w + kAhead + (P - 1) * stride);
    } else if (ahead.from) {
      const uint8_t* next = ahead.from;
      for (; s < steps; ++s) {
        step(nullptr);
        fetch(next);
        next += ahead.stride;
      }
    } else {
      for (; s < steps; ++s) step(nullptr);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      F16 sums[P];
      for (int j = 0; j < P; ++j) sums[j] = I::valuef(acc[i][j]);
      finish<P>(b, row + i, p, sums);
    }
  }

  // One 4-bit panel as 8-bit codes, kp · 16 bytes.
  static void unpack4(const Matrix& w, int64_t p, uint8_t* to) {
    const uint8_t* from = w.panel(p);
    const uint8_t* groups = w.panel_groups(p);
    const int64_t vectors = w.group / 8;
    for (int64_t g = 0; g < w.kp / w.group; ++g) {
      const typename I::Unpack u = I::load_unpack(groups + g * 2 * kPanel);
      for (int64_t v = 0; v < vectors; ++v) {
        I::unpack(u, from, to);
        from += 64;
        to += 128;
      }
    }
  }
};

}  // namespace
}  // namespace baseload
