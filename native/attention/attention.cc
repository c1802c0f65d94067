// Rope, cache write and attention of all rows of a step, in one call; and the byte array that is the cache.
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "attention/isa.h"
#include "attention/layout.h"
#include "attention/memory.h"
#include "common/ffi.h"
#include "common/pool.h"

namespace baseload {
namespace {

struct Span {
  int64_t first_row, rows, start;
  const int32_t* table;
};

// Rows [row, row + rows) of a span and one kv head; `splits` of them from `split` on (-1: all, and into `out`).
struct Piece {
  int32_t span, row, rows, kv_head, split, splits;
  int64_t part;  // where its sums go, counted in vectors
};

struct Call {
  CacheLayout layout;
  const AttentionIsa* isa;
  const float *qkv, *angles, *q_norm, *k_norm;
  float eps;
  int64_t window, rows;
  uint8_t* cache;
  float* out;
  std::vector<Span> spans;
};

void prepare_rows(const Call& call, uint8_t* q, float* q_extra) {
  const CacheLayout& c = call.layout;
  const int64_t width = (c.heads + 2 * c.kv_heads) * c.dim;
  const auto one = [&](const Span& span, int64_t index) {
    const int64_t row = span.first_row + index;
    RowTask task{&c,          call.qkv + row * width, call.angles + row * c.dim, call.q_norm, call.k_norm, call.eps,
                 span.start + index, span.table, call.cache, q + row * c.heads * c.q_bytes,
                 q_extra + row * c.heads * 2};
    call.isa->prepare(task);
  };
  if (call.rows <= 2) {
    for (const Span& span : call.spans)
      for (int64_t i = 0; i < span.rows; ++i) one(span, i);
    return;
  }
  // Positions that share a tile belong to one task: the first of them clears the tile.
  std::vector<std::pair<int32_t, int32_t>> groups;
  for (size_t s = 0; s < call.spans.size(); ++s) {
    int64_t last = -1;
    for (int64_t i = 0; i < call.spans[s].rows; ++i) {
      const int64_t tile = place_of(c, call.spans[s].start + i).tile;
      if (tile != last) groups.emplace_back(static_cast<int32_t>(s), static_cast<int32_t>(i));
      last = tile;
    }
  }
  parallel_for(static_cast<int64_t>(groups.size()), [&](int64_t g, int) {
    const Span& span = call.spans[groups[g].first];
    const int64_t tile = place_of(c, span.start + groups[g].second).tile;
    for (int64_t i = groups[g].second; i < span.rows && place_of(c, span.start + i).tile == tile; ++i) one(span, i);
  });
}

int64_t splits_of(const Call& call, const Span& span, int64_t row, int64_t rows, int64_t* first) {
  const int64_t position = span.start + row;
  *first = split_of(call.layout, first_seen(position, call.window));
  return split_of(call.layout, position + rows - 1) - *first + 1;
}

// Pieces of work, the largest first: prompts from their ends, then single rows.
std::vector<Piece> pieces_of(const Call& call, int64_t* parts) {
  const CacheLayout& c = call.layout;
  const int64_t most = rows_per_task(c);
  std::vector<Piece> pieces;
  const auto add = [&](size_t s, int64_t row, int64_t rows) {
    for (int64_t head = 0; head < c.kv_heads; ++head)
      pieces.push_back({static_cast<int32_t>(s), static_cast<int32_t>(row), static_cast<int32_t>(rows),
                        static_cast<int32_t>(head), 0, -1, 0});
  };
  for (size_t s = 0; s < call.spans.size(); ++s) {
    const int64_t rows = call.spans[s].rows;
    if (rows == 1) continue;
    for (int64_t row = (rows - 1) / most * most; row >= 0; row -= most) add(s, row, rows - row < most ? rows - row : most);
  }
  for (size_t s = 0; s < call.spans.size(); ++s)
    if (call.spans[s].rows == 1) add(s, 0, 1);
  *parts = 0;
  if (threads() == 1 || static_cast<int64_t>(pieces.size()) >= 3 * threads()) return pieces;
  std::vector<Piece> split;
  for (const Piece& piece : pieces) {
    int64_t first;
    const int64_t count = splits_of(call, call.spans[piece.span], piece.row, piece.rows, &first);
    for (int64_t i = 0; i < count; ++i) {
      Piece one = piece;
      if (count > 1) {
        one.split = static_cast<int32_t>(first + i);
        one.splits = 1;
        one.part = *parts;
        *parts += one.rows * c.groups;
      }
      split.push_back(one);
    }
  }
  return split;
}

float* out_of(const Call& call, const Piece& piece) {
  const CacheLayout& c = call.layout;
  return call.out + (call.spans[piece.span].first_row + piece.row) * c.heads * c.dim + piece.kv_head * c.groups * c.dim;
}

void merge_parts(const Call& call, const std::vector<Piece>& pieces, float* parts) {
  const CacheLayout& c = call.layout;
  const int64_t stride = part_floats(c);
  for (size_t i = 0; i < pieces.size();) {
    const Piece& first = pieces[i];
    size_t end = i + 1;
    if (first.splits < 0) {
      i = end;
      continue;
    }
    while (end < pieces.size() && pieces[end].splits > 0 && pieces[end].span == first.span &&
           pieces[end].row == first.row && pieces[end].kv_head == first.kv_head)
      ++end;
    for (int64_t r = 0; r < first.rows * c.groups; ++r) {
      float* total = parts + (first.part + r) * stride;
      for (size_t j = i + 1; j < end; ++j) call.isa->merge(c, total, parts + (pieces[j].part + r) * stride);
      call.isa->finish(c, total, out_of(call, first) + r / c.groups * c.heads * c.dim + r % c.groups * c.dim);
    }
    i = end;
  }
}

void run(const Call& call) {
  const CacheLayout& c = call.layout;
  static thread_local Aligned queries, extras, parts_memory;
  uint8_t* q = queries.bytes(call.rows * c.heads * c.q_bytes);
  float* q_extra = reinterpret_cast<float*>(extras.bytes(call.rows * c.heads * 8));
  prepare_rows(call, q, q_extra);
  int64_t parts = 0;
  const std::vector<Piece> pieces = pieces_of(call, &parts);
  float* part = reinterpret_cast<float*>(parts_memory.bytes(parts * part_floats(c) * 4));
  parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    static thread_local Aligned scratch;
    const Piece& piece = pieces[i];
    const Span& span = call.spans[piece.span];
    const int64_t at = (span.first_row + piece.row) * c.heads + piece.kv_head * c.groups;
    AttendTask task{};
    task.layout = &c;
    task.q = q + at * c.q_bytes;
    task.q_extra = q_extra + at * 2;
    task.rows = piece.rows;
    task.first_position = span.start + piece.row;
    task.window = call.window;
    task.kv_head = piece.kv_head;
    task.table = span.table;
    task.cache = call.cache;
    task.split = piece.split;
    task.splits = piece.splits;
    task.out = piece.splits < 0 ? out_of(call, piece) : nullptr;
    task.part = part + piece.part * part_floats(c);
    task.scratch = scratch.bytes(attend_scratch_bytes(c));
    call.isa->attend(task);
  });
  if (parts > 0) merge_parts(call, pieces, part);
}

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using U8 = ffi::Buffer<ffi::U8>;

// spans[0] = (how many, rows, -, -); spans[1 + i] = (first row, rows, first position, row of `tables`).
ffi::Error attention(F32 qkv, F32 angles, S32 spans, S32 tables, U8 blob, U8 cache, ffi::ResultBuffer<ffi::F32> out,
                     ffi::ResultBuffer<ffi::U8> cache_out, int64_t heads, int64_t kv_heads, int64_t block_tokens,
                     int64_t blocks, int64_t layer, int64_t int8, int64_t window, int64_t q_norm, int64_t k_norm,
                     double eps, std::string_view isa) {
  const int64_t dim = angles.dimensions()[1], width = tables.dimensions()[1];
  const int32_t* plan = spans.typed_data();
  Call call;
  call.layout = make_layout(heads, kv_heads, dim, block_tokens, blocks, int8 != 0);
  const CacheLayout& c = call.layout;
  if (dim > 1024 || dim % 2 || heads % kv_heads || heads / kv_heads > 256 ||
      (layer + 1) * c.layer_bytes > static_cast<int64_t>(cache.element_count()) ||
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
  for (int64_t i = 0; i < plan[0]; ++i) {
    const int32_t* s = plan + 4 * (i + 1);
    if (s[0] < 0 || s[1] < 1 || s[0] + s[1] > plan[1] || s[2] < 0 || s[3] < 0 || s[3] >= tables.dimensions()[0] ||
        (s[2] + s[1] - 1) / block_tokens >= width)
      return ffi::Error::InvalidArgument("attention: a span lies outside the step");
    call.spans.push_back({s[0], s[1], s[2], tables.typed_data() + s[3] * width});
  }
  run(call);
  return ffi::Error::Success();
}

// Bytes nobody has written: memory fresh from the system costs nothing until it is used.
ffi::Error new_cache(ffi::ResultBuffer<ffi::U8> cache) {
  (void)cache;
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
                 .Attr<int64_t>("blocks")
                 .Attr<int64_t>("layer")
                 .Attr<int64_t>("int8")
                 .Attr<int64_t>("window")
                 .Attr<int64_t>("q_norm")
                 .Attr<int64_t>("k_norm")
                 .Attr<double>("eps")
                 .Attr<std::string_view>("isa"));

BASELOAD_FFI(bl_new_cache, baseload::new_cache, ffi::Ffi::Bind().Ret<ffi::Buffer<ffi::U8>>());
