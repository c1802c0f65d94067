// What each instruction set provides; one table per translation unit, chosen at run time.
#pragma once

#include <cstdint>

#include "matmul/layout.h"

namespace baseload {

enum class Isa : int32_t { kPortable = 0, kAvx2 = 1, kAvxVnni = 2, kAvx512 = 3, kAmx = 4, kEmulated = 5, kAvx512Vnni = 6 };

enum class Epilogue : int32_t { kPlain = 0, kResidual = 1, kSwiglu = 2 };

// Rows of activations as the product wants them, [rows][lda] each, of which kp count: int8 (w8, w4) or bfloat16 (bf16),
// or these widened where an instruction set wants them so; the others are null.
struct Activations {
  int64_t kp = 0;
  int64_t lda = 0;           // from row to row
  int8_t* codes = nullptr;
  int16_t* wide = nullptr;
  uint16_t* bf16 = nullptr;
  float* floats = nullptr;   // the same as bf16, widened
  float* scale = nullptr;    // [rows]; NaN for a row that is not finite
  int32_t* sum = nullptr;    // [rows]: of all codes
  int32_t* sums = nullptr;   // [rows][kp / 32][2], w4 only: of 32 codes, and −8 times that
};

// A block of rows times a range of panels, and where the result goes.
struct Block {
  Matrix w;
  Activations a;
  int64_t row_begin = 0, row_end = 0;
  int64_t panel_begin = 0, panel_end = 0;  // even for swiglu
  Epilogue epilogue = Epilogue::kPlain;
  const float* bias = nullptr;      // per row of W as packed, or null
  const float* residual = nullptr;  // [rows][ldo]
  float* out = nullptr;             // [rows][ldo]
  int64_t columns = 0;              // that are written
  int64_t ldo = 0;
  uint8_t* scratch = nullptr;       // of this thread, kScratchPanels unpacked panels, aligned to 64
};

constexpr int64_t kScratchPanels = 2;
constexpr int64_t kTileRows = 32;  // tiles are loaded by so many rows, whatever lies behind the last: room is kept for them

struct Kernels {
  const char* name;
  bool wide;    // wants Activations::wide for w8
  bool floats;  // wants Activations::floats, not bf16
  bool tiles;   // takes rows by kTileRows, and reads them fast enough to wait for a far cache
  // One row x[k] (times 1/rms · norm when norm is not null; a null norm with eps >= 0 is a norm without weights; eps < 0
  // is none) to row `row` of `a`, for `scheme`.
  void (*prepare_row)(const float* x, const float* norm, float eps, int64_t k, Scheme scheme, const Activations& a,
                      int64_t row);
  void (*run)(const Block& block);
  // For measuring limits: products of registers (or tiles) with themselves, answering how many multiply-adds were done;
  // and a walk over memory, answering something that depends on all of it.
  int64_t (*peak)(Scheme scheme, int64_t rounds);
  uint64_t (*read)(const uint8_t* from, int64_t bytes);
};

// Null where it was not compiled in. Whether the processor has it, is asked elsewhere.
const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();
const Kernels* kernels_emulated();

}  // namespace baseload
