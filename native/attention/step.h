// Rope, cache write and attention of all rows of a step.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/layout.h"

namespace baseload {

// New rows of one sequence, which lie one after another.
struct Span {
  int64_t first_row, rows, start;
  const int32_t* table;  // block of positions i · block_tokens …
};

struct StepCall {
  CacheLayout layout;
  const AttentionIsa* isa;
  const float *qkv, *angles;      // [rows][(heads + 2 kv_heads) · dim], [rows][dim]
  const float *q_norm, *k_norm;   // [dim], or null
  float eps;
  int64_t window, rows;
  uint8_t* cache;                 // of the layer in block 0
  float* out;                     // [rows][heads · dim]
  std::vector<Span> spans;
};

void attend_step(const StepCall& call);

}  // namespace baseload
