// A product of activations with a packed matrix, on all threads.
#pragma once

#include <cstdint>

#include "matmul/kernels.h"

namespace baseload {

// The kernels for `isa`, or null where this build or this processor lacks them.
const Kernels* kernels_for(Isa isa);

struct Product {
  const Kernels* kernels = nullptr;
  Matrix w;                        // the first expert's where there are several
  const float* x = nullptr;        // [*, k]
  int64_t rows = 0;                // of the result that are computed
  const int32_t* pick = nullptr;   // row of x for each row of the result; null: the same
  const float* norm = nullptr;     // [k], or null
  float eps = -1.0f;               // < 0: no norm
  Epilogue epilogue = Epilogue::kPlain;
  const float* bias = nullptr;
  const float* residual = nullptr;
  float* out = nullptr;
  int64_t columns = 0;
  // Experts: result rows [offsets[e], offsets[e + 1]) belong to expert e, whose matrix lies e · stride bytes further.
  int64_t experts = 1;
  const int32_t* offsets = nullptr;  // null: one matrix for all rows
  int64_t stride = 0;
};

void multiply(const Product& product);

// Row `index` of the matrix as floats.
void unpack_row(const Matrix& w, int64_t index, float* to);

}  // namespace baseload
