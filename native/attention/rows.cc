// The small calls of a step that are neither matrix products nor attention: rows of the embedding, picked rows, and
// the choice of experts. `active` rows are computed, the rest of the buffers is left as it is.
#include <cstring>
#include <string_view>

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
ffi::Error embed(S32 tokens, S32 active, U8 blob, ffi::ResultBuffer<ffi::F32> x, int64_t offset, int64_t vocab,
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

// x[picks[i]] for the first `active` picks.
ffi::Error pick(F32 x, S32 picks, S32 active, ffi::ResultBuffer<ffi::F32> out) {
  const int64_t hidden = x.dimensions()[1], count = least(active.typed_data()[0], out->dimensions()[0]);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = picks.typed_data()[i];
    if (row < 0 || row >= x.dimensions()[0]) return ffi::Error::InvalidArgument("pick: no such row");
    std::memcpy(out->typed_data() + i * hidden, x.typed_data() + row * hidden, static_cast<size_t>(hidden) * 4);
  }
  return ffi::Error::Success();
}

ffi::Error route(F32 x, S32 active, U8 blob, ffi::ResultBuffer<ffi::S32> experts, ffi::ResultBuffer<ffi::F32> weights,
                 int64_t norm, int64_t router, int64_t count, int64_t normalize, double eps, std::string_view isa) {
  const int64_t hidden = x.dimensions()[1], chosen = experts->dimensions()[1];
  const int64_t rows = least(active.typed_data()[0], x.dimensions()[0]);
  if (chosen > count) return ffi::Error::InvalidArgument("route: more experts chosen than there are");
  const AttentionIsa& kernels = attention_isa(isa);
  parallel_for((rows + kRouteRows - 1) / kRouteRows, [&](int64_t task, int) {
    static thread_local Aligned scratch;
    const int64_t row = task * kRouteRows;
    RouteTask one{};
    one.x = x.typed_data() + row * hidden;
    one.norm = reinterpret_cast<const float*>(blob.typed_data() + norm);
    one.router = reinterpret_cast<const float*>(blob.typed_data() + router);
    one.rows = least(kRouteRows, rows - row);
    one.hidden = hidden;
    one.experts = count;
    one.chosen = chosen;
    one.normalize = normalize != 0;
    one.eps = static_cast<float>(eps);
    one.experts_out = experts->typed_data() + row * chosen;
    one.weights_out = weights->typed_data() + row * chosen;
    one.scratch = reinterpret_cast<float*>(scratch.bytes(route_scratch_floats(hidden, count) * 4));
    kernels.route(one);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace baseload

BASELOAD_FFI(bl_embed, baseload::embed,
             ffi::Ffi::Bind()
                 .Arg<baseload::S32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::U8>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Attr<int64_t>("offset")
                 .Attr<int64_t>("vocab")
                 .Attr<int64_t>("bf16"));

BASELOAD_FFI(bl_pick, baseload::pick,
             ffi::Ffi::Bind()
                 .Arg<baseload::F32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::S32>()
                 .Ret<ffi::Buffer<ffi::F32>>());

BASELOAD_FFI(bl_route, baseload::route,
             ffi::Ffi::Bind()
                 .Arg<baseload::F32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::U8>()
                 .Ret<ffi::Buffer<ffi::S32>>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Attr<int64_t>("norm")
                 .Attr<int64_t>("router")
                 .Attr<int64_t>("count")
                 .Attr<int64_t>("normalize")
                 .Attr<double>("eps")
                 .Attr<std::string_view>("isa"));
