#include "matmul/check.h"

#include <cmath>
#include <cstring>
#include <cstdint>
#include <vector>

#include "common/cpu.h"
#include "matmul/matmul.h"

namespace baseload {
namespace {

struct Noise {
  uint32_t state = 1;
  uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }
};

// One matrix of each scheme times some rows, by both; integers must agree to the last bit, floats nearly.
bool agree(const Kernels* kernels, Scheme scheme, int64_t n, int64_t k, int64_t rows) {
  Noise noise;
  const Parts parts = parts_of(shape_of(scheme, n, k, 32));
  std::vector<uint8_t> bytes(parts.total + kAlign);
  uint8_t* base = bytes.data() + (kAlign - reinterpret_cast<uintptr_t>(bytes.data()) % kAlign) % kAlign;
  for (int64_t i = 0; i < parts.total; ++i) base[i] = static_cast<uint8_t>(noise.next());
  if (scheme == Scheme::kBf16) {
    for (int64_t i = 1; i < parts.total; i += 2) base[i] = static_cast<uint8_t>(0x3e + (noise.next() & 0x81));
  } else {
    for (int64_t i = parts.scale; i < parts.total; i += 4) {
      const float scale = 0.01f;
      std::memcpy(base + i, &scale, 4);
    }
  }
  if (scheme == Scheme::kW4) {
    for (int64_t i = parts.groups; i < parts.scale; ++i) base[i] = (i - parts.groups) % 32 < 16 ? i % 8 : i % 128;
  }
  std::vector<float> x(rows * k), ours(rows * n), theirs(rows * n);
  // Whole numbers whose largest is 127: each row quantizes to itself, however the instruction set rounds.
  for (float& value : x) value = static_cast<float>(noise.next() % 255) - 127.0f;
  for (int64_t row = 0; row < rows; ++row) x[row * k + row % k] = 127.0f;
  Product p;
  p.w = matrix_at(base, scheme, n, k, 32);
  p.x = x.data();
  p.rows = rows;
  p.columns = n;
  p.kernels = kernels;
  p.out = ours.data();
  multiply(p);
  p.kernels = kernels_portable();
  p.out = theirs.data();
  multiply(p);
  for (int64_t i = 0; i < rows * n; ++i) {
    const float most = scheme == Scheme::kBf16 ? 0.01f * std::sqrt(static_cast<float>(k)) : 1e-4f * std::fabs(theirs[i]);
    if (!(std::fabs(ours[i] - theirs[i]) <= most + 1e-6f)) return false;
  }
  return true;
}

bool check() {
#if defined(__x86_64__)
  const CpuFeatures& cpu = cpu_features();
  return cpu.amx_int8 && cpu.amx_bf16 && agrees_with_plain(kernels_amx());
#else
  return false;
#endif
}

}  // namespace

bool agrees_with_plain(const Kernels* kernels) {
  for (const Scheme scheme : {Scheme::kW8, Scheme::kW4, Scheme::kBf16}) {
    for (const int64_t rows : {1, 5, 16, 17, 33}) {
      if (!agree(kernels, scheme, 48, 192, rows)) return false;
    }
  }
  return true;
}

bool amx_works() {
  static const bool works = check();
  return works;
}

}  // namespace baseload
