// The step's attention as XLA calls it, and the byte array that is the cache.
#include <sys/mman.h>

#include <cstring>
#include <string_view>

#include "attention/isa.h"
#include "attention/step.h"
#include "common/ffi.h"

namespace baseload {
namespace {

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using U8 = ffi::Buffer<ffi::U8>;

// spans[0] = (how many, rows, -, -); spans[1 + i] = (first row, rows, first position, row of `tables`).
ffi::Error attention(F32 qkv, F32 angles, S32 spans, S32 tables, U8 blob, U8 cache, ffi::ResultBuffer<ffi::F32> out,
                     ffi::ResultBuffer<ffi::U8> cache_out, int64_t heads, int64_t kv_heads, int64_t block_tokens,
                     int64_t layers, int64_t layer, int64_t int8, int64_t window, int64_t q_norm, int64_t k_norm,
                     double eps, std::string_view isa) {
  const int64_t dim = angles.dimensions()[1], width = tables.dimensions()[1];
  const int32_t* plan = spans.typed_data();
  StepCall call;
  call.layout = make_layout(heads, kv_heads, dim, block_tokens, layers, int8 != 0);
  const CacheLayout& c = call.layout;
  if (dim > 1024 || dim % 2 || heads % kv_heads || heads / kv_heads > 256 ||
      layer < 0 || layer >= layers ||
      qkv.dimensions()[1] != (heads + 2 * kv_heads) * dim || plan[0] >= spans.dimensions()[0] ||
      plan[1] > qkv.dimensions()[0])
    return ffi::Error::InvalidArgument("attention: the shapes do not fit");
  call.isa = &attention_isa(isa);
  call.qkv = qkv.typed_data();
  call.angles = angles.typed_data();
  call.q_norm = q_norm < 0 ? nullptr : reinterpret_cast<const float*>(blob.typed_data() + q_norm);
  call.k_norm = k_norm < 0 ? nullptr : reinterpret_cast<const float*>(blob.typed_data() + k_norm);
  call.eps = static_cast<float>(eps);
  call.window = window;
  call.rows = plan[1];
  call.out = out->typed_data();
  if (cache_out->typed_data() != cache.typed_data())  // XLA chose not to alias: right, but slow
    std::memcpy(cache_out->typed_data(), cache.typed_data(), cache.size_bytes());
  call.cache = cache_out->typed_data() + layer * c.layer_bytes;
  const int64_t blocks = static_cast<int64_t>(cache.element_count()) / c.block_bytes;
  for (int64_t i = 0; i < plan[0]; ++i) {
    const int32_t* s = plan + 4 * (i + 1);
    if (s[0] < 0 || s[1] < 1 || s[0] + s[1] > plan[1] || s[2] < 0 || s[3] < 0 || s[3] >= tables.dimensions()[0] ||
        (s[2] + s[1] - 1) / block_tokens >= width)
      return ffi::Error::InvalidArgument("attention: a span lies outside the step");
    const int32_t* table = tables.typed_data() + s[3] * width;
    for (int64_t b = 0; layer == 0 && b <= (s[2] + s[1] - 1) / block_tokens; ++b)
      if (table[b] < 0 || table[b] >= blocks) return ffi::Error::InvalidArgument("attention: no such block");
    call.spans.push_back({s[0], s[1], s[2], table});
  }
  attend_step(call);
  return ffi::Error::Success();
}

// Bytes nobody has written: memory fresh from the system costs nothing until it is used. Large pages, because every tile
// is elsewhere: with small ones each costs a walk through the page tables.
ffi::Error new_cache(ffi::ResultBuffer<ffi::U8> cache) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096, from = reinterpret_cast<uintptr_t>(cache->untyped_data());
  const uintptr_t first = (from + page - 1) / page * page, last = (from + cache->size_bytes()) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a wish: it may fail
#endif
  return ffi::Error::Success();
}

}  // namespace
}  // namespace baseload

BASELOAD_FFI(bl_attention, baseload::attention,
             ffi::Ffi::Bind()
                 .Arg<baseload::F32>()
                 .Arg<baseload::F32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::S32>()
                 .Arg<baseload::U8>()
                 .Arg<baseload::U8>()
                 .Ret<ffi::Buffer<ffi::F32>>()
                 .Ret<ffi::Buffer<ffi::U8>>()
                 .Attr<int64_t>("heads")
                 .Attr<int64_t>("kv_heads")
                 .Attr<int64_t>("block_tokens")
                 .Attr<int64_t>("layers")
                 .Attr<int64_t>("layer")
                 .Attr<int64_t>("int8")
                 .Attr<int64_t>("window")
                 .Attr<int64_t>("q_norm")
                 .Attr<int64_t>("k_norm")
                 .Attr<double>("eps")
                 .Attr<std::string_view>("isa"));

BASELOAD_FFI(bl_new_cache, baseload::new_cache, ffi::Ffi::Bind().Ret<ffi::Buffer<ffi::U8>>());
