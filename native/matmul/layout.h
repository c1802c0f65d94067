// A packed matrix in memory (native/LAYOUT.md, layout 1).
#pragma once

#include <cstdint>

namespace baseload {

constexpr int64_t kPanel = 16;
constexpr int64_t kDepth = 64;
constexpr int64_t kAlign = 64;
constexpr int64_t kMaxDepth = 65536;
constexpr int64_t kBlock4 = 32;  // 4-bit sums are folded, and sums of activations kept, per this many of K

enum class Scheme : int32_t { kW8 = 0, kW4 = 1, kBf16 = 2 };

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Matrix {
  Scheme scheme = Scheme::kW8;
  int64_t n = 0, k = 0;    // logical
  int64_t panels = 0;      // of 16 rows
  int64_t kp = 0;          // K as it lies in memory
  int64_t group = 0;       // along K; w4 only
  const uint8_t* codes = nullptr;
  const uint8_t* groups = nullptr;  // w4 only
  const float* scale = nullptr;     // not for bf16

  int64_t panel_bytes() const {
    return scheme == Scheme::kW8 ? kp * kPanel : scheme == Scheme::kW4 ? kp * kPanel / 2 : kp * kPanel * 2;
  }
  int64_t group_bytes() const { return scheme == Scheme::kW4 ? kp / group * 2 * kPanel : 0; }
  const uint8_t* panel(int64_t p) const { return codes + p * panel_bytes(); }
  const uint8_t* panel_groups(int64_t p) const { return groups + p * group_bytes(); }
};

struct Parts {
  int64_t groups = 0, scale = 0, total = 0;  // offsets from the matrix's first byte, and its whole length
};

inline Matrix shape_of(Scheme scheme, int64_t n, int64_t k, int64_t group) {
  Matrix m;
  m.scheme = scheme;
  m.n = n;
  m.k = k;
  m.group = scheme == Scheme::kW4 ? group : 0;
  m.panels = round_up(n, kPanel) / kPanel;
  m.kp = round_up(k, m.group > kDepth ? m.group : kDepth);
  return m;
}

inline Parts parts_of(const Matrix& m) {
  Parts parts;
  int64_t at = round_up(m.panels * m.panel_bytes(), kAlign);
  if (m.scheme == Scheme::kW4) {
    parts.groups = at;
    at += round_up(m.panels * m.group_bytes(), kAlign);
  }
  if (m.scheme != Scheme::kBf16) {
    parts.scale = at;
    at += round_up(m.panels * kPanel * 4, kAlign);
  }
  parts.total = at;
  return parts;
}

// The matrix whose first byte is `base`.
inline Matrix matrix_at(const uint8_t* base, Scheme scheme, int64_t n, int64_t k, int64_t group) {
  Matrix m = shape_of(scheme, n, k, group);
  const Parts parts = parts_of(m);
  m.codes = base;
  m.groups = base + parts.groups;
  m.scale = reinterpret_cast<const float*>(base + parts.scale);
  return m;
}

}  // namespace baseload
