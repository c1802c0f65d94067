#include "attention/step.h"

#include <utility>
#include <vector>

#include "attention/memory.h"
#include "common/pool.h"

namespace baseload {
namespace {

// Rows [row, row + rows) of a span and one kv head; `splits` of them from `split` on (-1: all, and into `out`).
struct Piece {
  int32_t span, row, rows, kv_head, split, splits;
  int64_t part;  // where its sums go, counted in vectors
};

void prepare_rows(const StepCall& call, uint8_t* q, float* q_extra) {
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

int64_t splits_of(const StepCall& call, const Span& span, int64_t row, int64_t rows, int64_t* first) {
  const int64_t position = span.start + row;
  *first = split_of(call.layout, first_seen(position, call.window));
  return split_of(call.layout, position + rows - 1) - *first + 1;
}

// Pieces of work: prompts, each head from its end, then single rows.
std::vector<Piece> pieces_of(const StepCall& call, int64_t* parts) {
  const CacheLayout& c = call.layout;
  const int64_t most = rows_per_task(c, call.isa->vectors);
  std::vector<Piece> pieces;
  // One head after the other: its keys and values stay in the core's cache while all rows go over them.
  for (size_t s = 0; s < call.spans.size(); ++s) {
    const int64_t rows = call.spans[s].rows;
    for (int64_t head = 0; head < c.kv_heads && rows > 1; ++head)
      for (int64_t row = (rows - 1) / most * most; row >= 0; row -= most)
        pieces.push_back({static_cast<int32_t>(s), static_cast<int32_t>(row),
                          static_cast<int32_t>(rows - row < most ? rows - row : most), static_cast<int32_t>(head), 0, -1, 0});
  }
  for (size_t s = 0; s < call.spans.size(); ++s)
    for (int64_t head = 0; head < c.kv_heads && call.spans[s].rows == 1; ++head)
      pieces.push_back({static_cast<int32_t>(s), 0, 1, static_cast<int32_t>(head), 0, -1, 0});
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

float* out_of(const StepCall& call, const Piece& piece) {
  const CacheLayout& c = call.layout;
  return call.out + (call.spans[piece.span].first_row + piece.row) * c.heads * c.dim + piece.kv_head * c.groups * c.dim;
}

void merge_parts(const StepCall& call, const std::vector<Piece>& pieces, float* parts) {
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

}  // namespace

void attend_step(const StepCall& call) {
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
    task.scratch = scratch.bytes(attend_scratch_bytes(c, call.isa->vectors));
    call.isa->attend(task);
  });
  if (parts > 0) merge_parts(call, pieces, part);
}

}  // namespace baseload
