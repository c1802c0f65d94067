// The kernels of one instruction set: a translation unit defines the type `I` (in its own anonymous namespace) with the
// few operations that differ, and instantiates Impl<I>, which chooses blocks for the rows and panels at hand.
#pragma once

#include "matmul/activations.h"
#include "matmul/blocks.h"
#include "matmul/speed.h"

namespace baseload {
namespace {

constexpr int64_t kStreamRows = 2;  // so few rows wait for memory: panels one after the other are one stream

template <class I>
struct Impl {
  // R is a compile-time number, so a chain of comparisons leads to the block for the rows at hand.

  template <int P, int R = I::kRows>
  static BL_INLINE void rows8(int64_t rows, const Block& b, int64_t row, int64_t p, const uint8_t* w, int64_t stride,
                              Stream ahead) {
    if constexpr (R >= 1) {
      if (rows == R) {
        Blocks<I>::template block8<R, P, (R * P <= 2 ? 4 : R * P <= 4 ? 2 : 1)>(b, row, p, w, stride, ahead);
      } else {
        rows8<P, R - 1>(rows, b, row, p, w, stride, ahead);
      }
    }
  }

  template <int P, int R = I::kRows>
  static BL_INLINE void rowsb(int64_t rows, const Block& b, int64_t row, int64_t p, Stream ahead) {
    if constexpr (R >= 1) {
      if (rows == R) {
        Blocks<I>::template blockb<R, P>(b, row, p, ahead);
      } else {
        rowsb<P, R - 1>(rows, b, row, p, ahead);
      }
    }
  }

  template <int P, int R = I::kRows4>
  static BL_INLINE void rows4(int64_t rows, const Block& b, int64_t row, int64_t p) {
    if constexpr (R >= 1) {
      if (rows == R) {
        Blocks<I>::template block4<R, P>(b, row, p);
      } else {
        rows4<P, R - 1>(rows, b, row, p);
      }
    }
  }

  // Calls f(row, rows, index, count) for blocks of nearly equal size, none larger than `most`.
  template <class F>
  static BL_INLINE void split_rows(const Block& b, int64_t most, const F& f) {
    const int64_t total = b.row_end - b.row_begin, count = (total + most - 1) / most;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = b.row_begin + total * i / count, to = b.row_begin + total * (i + 1) / count;
      f(from, to - from, i, count);
    }
  }

  // The first block of several streams its own panels unless the task's panels before have fetched them already.
  static Stream ahead_of(const uint8_t* next, int64_t bytes, int64_t steps, int64_t index, int64_t count, bool first) {
    if (count == 1 || (first && index == 0)) return streaming();
    return next_only(next, bytes, steps, index, count);
  }

  static Stream next_only(const uint8_t* next, int64_t bytes, int64_t steps, int64_t index, int64_t count) {
    if (!next) return {};
    Stream stream;
    stream.from = next + bytes / count * index;
    stream.stride = bytes / count / steps;
    return stream;
  }

  static Stream streaming() {
    Stream stream;
    stream.stride = -1;
    return stream;
  }

  template <int P>
  static void panels8(const Block& b, int64_t p, const uint8_t* next) {
    const int64_t bytes = b.w.panel_bytes();
    if (P > 1 && b.row_end - b.row_begin <= kStreamRows) {
      for (int j = 0; j < P; ++j) panels8<1>(b, p + j, nullptr);
      return;
    }
    split_rows(b, I::kRows, [&](int64_t row, int64_t rows, int64_t index, int64_t count) {
      const Stream ahead = ahead_of(next, P * bytes, b.w.kp / 4, index, count, p == b.panel_begin);
      rows8<P>(rows, b, row, p, b.w.panel(p), bytes, ahead);
    });
  }

  template <int P>
  static void panels4(const Block& b, int64_t p, const uint8_t* next) {
    if (b.row_end - b.row_begin <= I::kDirect4) {
      if (P > 1 && b.row_end - b.row_begin <= kStreamRows) {
        for (int j = 0; j < P; ++j) panels4<1>(b, p + j, nullptr);
        return;
      }
      split_rows(b, I::kRows4, [&](int64_t row, int64_t rows, int64_t, int64_t) { rows4<P>(rows, b, row, p); });
      return;
    }
    const int64_t bytes = b.w.kp * kPanel;
    for (int j = 0; j < P; ++j) Blocks<I>::unpack4(b.w, p + j, b.scratch + j * bytes);
    split_rows(b, I::kRows, [&](int64_t row, int64_t rows, int64_t index, int64_t count) {
      const Stream ahead = next_only(next, P * b.w.panel_bytes(), b.w.kp / 4, index, count);
      rows8<P>(rows, b, row, p, b.scratch, bytes, ahead);
    });
  }

  template <int P>
  static void panelsb(const Block& b, int64_t p, const uint8_t* next) {
    split_rows(b, I::kRows, [&](int64_t row, int64_t rows, int64_t index, int64_t count) {
      const int64_t bytes = P * b.w.panel_bytes();
      const Stream ahead = ahead_of(next, bytes, b.w.kp / 2, index, count, p == b.panel_begin);
      rowsb<P>(rows, b, row, p, ahead);
    });
  }

  template <int P>
  static BL_INLINE void panels(const Block& b, int64_t p) {
    const uint8_t* next = p + 2 * P <= b.panel_end ? b.w.panel(p + P) : nullptr;
    switch (b.w.scheme) {
      case Scheme::kW8:
        return panels8<P>(b, p, next);
      case Scheme::kW4:
        return panels4<P>(b, p, next);
      case Scheme::kBf16:
        return panelsb<P>(b, p, next);
    }
  }

  static void run(const Block& b) {
    if (b.row_end <= b.row_begin) return;
    int64_t p = b.panel_begin;
    for (; p + I::kPanels <= b.panel_end; p += I::kPanels) panels<I::kPanels>(b, p);
    if constexpr (I::kPanels > 2) {
      for (; p + 2 <= b.panel_end; p += 2) panels<2>(b, p);
    }
    for (; p < b.panel_end; ++p) panels<1>(b, p);
  }

  static void prepare_row(const float* x, const float* norm, float eps, int64_t k, Scheme scheme, const Activations& a,
                          int64_t row) {
    if (scheme == Scheme::kBf16) return round_bf16<I::kFloats>(x, norm, eps, k, a, row);
    if (I::kWide && scheme == Scheme::kW8) return quantize<true>(x, norm, eps, k, false, a, row);
    return quantize<false>(x, norm, eps, k, scheme == Scheme::kW4, a, row);
  }

  static const Kernels* table(const char* name) {
    static const Kernels kernels{name, I::kWide, I::kFloats, false, &prepare_row, &run, &Speed<I>::peak, &Speed<I>::read};
    return &kernels;
  }
};

}  // namespace
}  // namespace baseload
