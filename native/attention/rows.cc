// The small calls of a step that are neither matrix products nor attention: rows of the embedding, the
// choice of experts, and the weighted sum of what they give. `active` rows are computed, the rest of the buffers is left as it is.
#include <cstring>
#include <string_view>
#include <vector>

#include "attention/isa.h"
#include "attention/memory.h"
#include "common/ffi.h"
#include "common/pool.h"

namespace baseload {
namespace {

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using U8 = ffi::Buffer<ffi::U8>;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// table[vocab][hidden] at byte `offset` of the blob, bf16 (or f32) -> x[rows][hidden]. A token outside of it gives 0.
ffi::Error table_rows(S32 tokens, S32 active, U8 blob, ffi::ResultBuffer<ffi::F32> x, int64_t offset, int64_t vocab,
                 int64_t bf16) {
  const int64_t hidden = x->dimensions()[1];
  const int64_t rows = least(active.typed_data()[0], x->dimensions()[0]);
  const uint8_t* table = blob.typed_data() + offset;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = tokens.typed_data()[row];
    float* to = x->typed_data() + row * hidden;
    if (token < 0 || token >= vocab) {
      std::memset(to, 0, static_cast<size_t>(hidden) * 4);
    } else if (bf16) {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(table) + token * hidden;
      for (int64_t i = 0; i < hidden; ++i) {
        const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
        std::memcpy(to + i, &bits, 4);
      }
    } else {
      std::memcpy(to, table + token * hidden * 4, static_cast<size_t>(hidden) * 4);
    }
  }
  return ffi::Error::Success();
}

// The pairs (row, choice) of all active rows sorted by expert, in the order of rows within one: pick[i] is the row of
// pair i, experts' pairs are offsets[e] … offsets[e + 1], and place[row][choice] says where a pair went.
void sort_pairs(const int32_t* chosen, int64_t rows, int64_t each, int64_t experts, int32_t* pick, int32_t* offsets,
                int32_t* place) {
  std::memset(offsets, 0, static_cast<size_t>(experts + 1) * 4);
  for (int64_t i = 0; i < rows * each; ++i) ++offsets[chosen[i] + 1];
  for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  std::vector<int32_t> next(offsets, offsets + experts);
  for (int64_t i = 0; i < rows * each; ++i) {
    const int32_t at = next[chosen[i]]++;
    pick[at] = static_cast<int32_t>(i / each);
    place[i] = at;
  }
}

ffi::Error route(F32 x, S32 active, U8 blob, ffi::ResultBuffer<ffi::F32> weights, ffi::ResultBuffer<ffi::S32> pick,
                 ffi::ResultBuffer<ffi::S32> offsets, ffi::ResultBuffer<ffi::S32> place, int64_t norm, int64_t router,
                 int64_t normalize, double eps, std::string_view isa) {
  const int64_t hidden = x.dimensions()[1], chosen = place->dimensions()[1];
  const int64_t rows = least(active.typed_data()[0], x.dimensions()[0]);
  const int64_t experts = static_cast<int64_t>(offsets->element_count()) - 1;
  if (chosen > experts) return ffi::Error::InvalidArgument("route: more experts chosen than there are");
  const AttentionIsa& kernels = attention_isa(isa);
  std::vector<int32_t> choice(static_cast<size_t>(rows * chosen));
  parallel_for((rows + kRouteRows - 1) / kRouteRows, [&](int64_t task, int) {
    static thread_local Aligned scratch;
    const int64_t row = task * kRouteRows;
    RouteTask one{};
    one.x = x.typed_data() + row * hidden;
    one.norm = reinterpret_cast<const float*>(blob.typed_data() + norm);
    one.router = reinterpret_cast<const float*>(blob.typed_data() + router);
    one.rows = least(kRouteRows, rows - row);
    one.hidden = hidden;
    one.experts = experts;
    one.chosen = chosen;
    one.normalize = normalize != 0;
    one.eps = static_cast<float>(eps);
    one.experts_out = choice.data() + row * chosen;
    one.weights_out = weights->typed_data() + row * chosen;
    one.scratch = reinterpret_cast<float*>(scratch.bytes(route_scratch_floats(hidden, experts) * 4));
    kernels.route(one);
  });
  sort_pairs(choice.data(), rows, chosen, experts, pick->typed_data(), offsets->typed_data(), place->typed_data());
  return ffi::Error::Success();
}

// x[row] + the sum over j of weights[row][j] · parts[place[row][j]], in that order.
ffi::Error combine(F32 x, F32 parts, F32 weights, S32 place, S32 active, ffi::ResultBuffer<ffi::F32> out) {
  const int64_t hidden = x.dimensions()[1], chosen = place.dimensions()[1];
  const int64_t rows = least(active.typed_data()[0], x.dimensions()[0]);
  parallel_for((rows + 7) / 8, [&](int64_t task, int) {
    for (int64_t row = task * 8; row < least(task * 8 + 8, rows); ++row) {
      float* to = out->typed_data() + row * hidden;
      std::memcpy(to, x.typed_data() + row * hidden, static_cast<size_t>(hidden) * 4);
      for (int64_t j = 0; j < chosen; ++j) {
        const float weight = weights.typed_data()[row * chosen + j];
        const float* part = parts.typed_data() + place.typed_data()[row * chosen + j] * hidden;
        for (int64_t i = 0; i < hidden; ++i) to[i] += weight * part[i];
      }
    }
  });
  return ffi::Error::Success();
}

// Rows of x transformed in place (SwiGLU's result, before it is rounded for `down`).
ffi::Error hadamard(F32 x, S32 active, ffi::ResultBuffer<ffi::F32> out, int64_t block, std::string_view isa) {
  const int64_t size = x.dimensions()[1], rows = least(active.typed_data()[0], x.dimensions()[0]);
  if (block < 16 || (block & (block - 1)) != 0 || size % block != 0)
    return ffi::Error::InvalidArgument("hadamard: the block is no power of two of at least 16 that divides the row");
  const AttentionIsa& kernels = attention_isa(isa);
  float* to = out->typed_data();
  const bool is_moved = to != x.typed_data();
  const int64_t each = 8 * 4096 / size + 1;
  parallel_for((rows + each - 1) / each, [&](int64_t task, int) {
    for (int64_t row = task * each; row < least((task + 1) * each, rows); ++row) {
      if (is_moved) std::memcpy(to + row * size, x.typed_data() + row * size, static_cast<size_t>(size) * 4);
      kernels.hadamard(to + row * size, size, block);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace baseload

BASELOAD_FFI(bl_rows, baseload::table_rows,
             ffi::Ffi::Bind()
                 .Arg<baseload::S32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::U8>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Attr<int64_t>("offset")
                 .Attr<int64_t>("vocab")
                 .Attr<int64_t>("bf16"));

BASELOAD_FFI(bl_route, baseload::route,
             ffi::Ffi::Bind()
                 .Arg<baseload::F32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::U8>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Ret<ffi::Buffer<ffi::S32>>()
                 .Ret<ffi::Buffer<ffi::S32>>()
                 .Ret<ffi::Buffer<ffi::S32>>()
                 .Attr<int64_t>("norm")
                 .Attr<int64_t>("router")
                 .Attr<int64_t>("normalize")
                 .Attr<double>("eps")
                 .Attr<std::string_view>("isa"));

BASELOAD_FFI(bl_combine, baseload::combine,
             ffi::Ffi::Bind()
                 .Arg<baseload::F32>()
                 .Arg<baseload::F32>()
                 .Arg<baseload::F32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::S32>()
                 .Ret<ffi::Buffer<ffi::F32>>());

BASELOAD_FFI(bl_hadamard, baseload::hadamard,
             ffi::Ffi::Bind()
                 .Arg<baseload::F32>()
                 .Arg<baseload::S32>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Attr<int64_t>("block")
                 .Attr<std::string_view>("isa"));
