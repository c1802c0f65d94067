// Every instruction set that runs here against sums written down naively, over ragged shapes. Buffers are exactly as
// large as documented, so that a sanitizer sees each byte read or written beyond them.
#include "matmul/matmul.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "common/pool.h"
#include "matmul/check.h"
#include "tests/check.h"

namespace {

using namespace baseload;

struct Noise {
  uint32_t state;
  uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }
  int64_t below(int64_t n) { return static_cast<int64_t>(next()) % n; }
  float unit() { return static_cast<float>(next() % 20001) / 10000.0f - 1.0f; }
};

struct Bytes {
  explicit Bytes(int64_t size) : data(static_cast<uint8_t*>(std::aligned_alloc(64, size ? size : 64))) {}
  ~Bytes() { std::free(data); }
  uint8_t* data;
};

// Random packed bytes that stand for something: w4's integers must stay within 0..255.
void fill(Noise& noise, const Matrix& shape, uint8_t* to) {
  const Parts parts = parts_of(shape);
  for (int64_t i = 0; i < parts.total; ++i) to[i] = static_cast<uint8_t>(noise.next());
  if (shape.scheme == Scheme::kBf16) {
    for (int64_t i = 1; i < parts.total; i += 2) to[i] = static_cast<uint8_t>(0x3e | (noise.next() & 0x81));
    return;
  }
  for (int64_t i = 0; i < shape.panels * kPanel; ++i) {
    const float scale = i < shape.n ? 0.5f + 0.25f * noise.unit() : 0.0f;
    std::memcpy(to + parts.scale + 4 * i, &scale, 4);
  }
  if (shape.scheme == Scheme::kW8) {
    for (int64_t i = 0; i < shape.panels * shape.panel_bytes(); ++i) to[i] = to[i] ? to[i] : 1;
    return;
  }
  for (int64_t i = 0; i < shape.panels * shape.group_bytes(); ++i) {
    to[parts.groups + i] = static_cast<uint8_t>(i % 32 < 16 ? noise.below(18) : noise.below(256));
  }
  for (int64_t i = 0; i < shape.panels * shape.group_bytes(); i += 32) {
    for (int64_t o = 0; o < 16; ++o) {
      uint8_t& z = to[parts.groups + i + 16 + o];
      const int most = 255 - 15 * to[parts.groups + i + o];
      z = z > most ? static_cast<uint8_t>(most) : z;
    }
  }
}

std::vector<float> weights_of(const Matrix& w) {
  std::vector<float> all(w.n * w.k + 1);
  for (int64_t i = 0; i < w.n; ++i) unpack_row(w, i, all.data() + i * w.k);
  return all;
}

void compare(Isa isa, Scheme scheme, Noise& noise, int64_t n, int64_t k, int64_t group, int64_t rows) {
  const Matrix shape = shape_of(scheme, n, k, group);
  Bytes bytes(parts_of(shape).total);
  fill(noise, shape, bytes.data);
  Product p;
  p.kernels = kernels_for(isa);
  p.w = matrix_at(bytes.data, scheme, n, k, group);
  const std::unique_ptr<float[]> x(new float[rows * k + 1]), out(new float[rows * n + 1]);
  const std::unique_ptr<float[]> residual(new float[rows * n + 1]);
  for (int64_t i = 0; i < rows * k; ++i) x[i] = static_cast<float>(noise.below(255) - 127);
  for (int64_t i = 0; i < rows; ++i) x[i * k + noise.below(k)] = 127.0f;  // so a row quantizes to itself
  for (int64_t i = 0; i < rows * n; ++i) residual[i] = noise.unit();
  p.x = x.get();
  p.rows = rows;
  p.out = out.get();
  p.columns = n;
  p.residual = residual.get();
  p.epilogue = Epilogue::kResidual;
  multiply(p);
  const std::vector<float> all = weights_of(p.w);
  const double slack = scheme == Scheme::kBf16 ? 2e-5 * std::sqrt(static_cast<double>(k)) : 1e-6;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = residual[i * n + j], size = 1.0;
      for (int64_t t = 0; t < k; ++t) {
        sum += static_cast<double>(x[i * k + t]) * all[j * k + t];
        size += std::fabs(static_cast<double>(x[i * k + t]) * all[j * k + t]);
      }
      if (!(std::fabs(out[i * n + j] - sum) <= slack * size)) {
        CHECK(false, "%s scheme %d n %ld k %ld group %ld rows %ld at %ld,%ld: %g not %g", p.kernels->name,
              static_cast<int>(scheme), n, k, group, rows, i, j, out[i * n + j], sum);
        return;
      }
    }
  }
}

void experts(Isa isa, Scheme scheme, Noise& noise) {
  const int64_t n = 64, k = 96, count = 4, pairs = 21, columns = 30;
  const Matrix shape = shape_of(scheme, n, k, 32);
  const int64_t stride = parts_of(shape).total;
  Bytes bytes(stride * count);
  for (int64_t e = 0; e < count; ++e) fill(noise, shape, bytes.data + e * stride);
  const std::unique_ptr<float[]> x(new float[5 * k]), out(new float[pairs * columns]), alone(new float[columns]);
  for (int64_t i = 0; i < 5 * k; ++i) x[i] = 0.01f * noise.unit();
  const int32_t offsets[] = {0, 6, 6, 20, 21};
  int32_t pick[pairs];
  for (int32_t& row : pick) row = static_cast<int32_t>(noise.below(5));
  Product p;
  p.kernels = kernels_for(isa);
  p.w = matrix_at(bytes.data, scheme, n, k, 32);
  p.x = x.get();
  p.rows = pairs;
  p.pick = pick;
  p.epilogue = Epilogue::kSwiglu;
  p.out = out.get();
  p.columns = columns;
  p.experts = count;
  p.offsets = offsets;
  p.stride = stride;
  multiply(p);
  for (int64_t e = 0; e < count; ++e) {
    for (int64_t i = offsets[e]; i < offsets[e + 1]; ++i) {
      Product one = p;
      one.w = matrix_at(bytes.data + e * stride, scheme, n, k, 32);
      one.offsets = nullptr;
      one.rows = 1;
      one.pick = pick + i;
      one.out = alone.get();
      multiply(one);
      CHECK(std::memcmp(alone.get(), out.get() + i * columns, columns * sizeof(float)) == 0, "%s expert %ld pair %ld",
            p.kernels->name, e, i);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int turns = argc > 1 ? std::atoi(argv[1]) : 6;
  baseload::set_threads(3);
  for (const Isa isa : {Isa::kPortable, Isa::kEmulated, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni, Isa::kAvx512, Isa::kAmx}) {
    if (!kernels_for(isa)) continue;
    CHECK(agrees_with_plain(kernels_for(isa)), "%s", kernels_for(isa)->name);
    Noise noise{7};
    for (const Scheme scheme : {Scheme::kW8, Scheme::kW4, Scheme::kBf16}) {
      for (int turn = 0; turn < turns; ++turn) {
        const int64_t n = 1 + noise.below(100), k = 1 + noise.below(400), group = int64_t{32} << noise.below(3);
        for (const int64_t rows : {0, 1, 2, 4, 5, 13, 33}) compare(isa, scheme, noise, n, k, group, rows);
      }
      compare(isa, scheme, noise, 16, 64, 32, 150);
      experts(isa, scheme, noise);
    }
    std::printf("%s: %d failures so far\n", kernels_for(isa)->name, failures);
  }
  return failures != 0;
}
