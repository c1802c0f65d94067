// The walk over a sequence's chunks for the queries of one kv head. Included by body.inl.

namespace {

// Scratch memory handed out from cache line to cache line.
struct Room {
  uint8_t* at;
  template <typename X>
  X* take(int64_t count) {
    X* here = reinterpret_cast<X*>(at);
    at += (count * static_cast<int64_t>(sizeof(X)) + 63) / 64 * 64;
    return here;
  }
};

// The vectors of a task, and their sums emptied. `room` for `vectors` of them, `wide` of these in one product.
inline void open_run(const AttendTask& t, int64_t vectors, int64_t wide, Room* room, Run* run) {
  const CacheLayout& c = *t.layout;
  const int64_t stride = baseload::part_floats(c);
  run->t = &t;
  run->c = &c;
  run->n = t.rows * c.groups;
  run->scores = room->take<float>(wide * kColumns);
  run->weights = room->take<uint16_t>(wide * kColumns);
  run->highest = room->take<float>(vectors);
  run->keep = room->take<float>(vectors);
  run->unit = room->take<float>(vectors);
  run->shift = room->take<int32_t>(vectors);
  run->state = room->take<float>(vectors * stride);
  run->total = room->take<float>(vectors * stride);
  for (int64_t r = 0; r < run->n; ++r) {
    const int64_t at = r / c.groups * c.heads + r % c.groups;
    run->q[r] = t.q + at * c.q_bytes;
    if (c.int8) {
      run->scale[r] = t.q_extra[at * 2];
      __builtin_memcpy(&run->offset[r], &t.q_extra[at * 2 + 1], 4);
    }
    clear_state(c, run->total + r * stride);
  }
}

// `one(chunk)` for every chunk of the task, in the order of positions; the softmax starts anew in each split.
template <typename One>
inline void walk(const Run& run, const One& one) {
  const AttendTask& t = *run.t;
  const CacheLayout& c = *run.c;
  const int64_t stride = baseload::part_floats(c);
  const int64_t first_tile = baseload::place_of(c, baseload::first_seen(t.first_position, t.window)).tile;
  const int64_t last_tile = baseload::place_of(c, t.first_position + t.rows - 1).tile;
  const int64_t split_tiles = kChunkTiles * kSplitChunks;
  const int64_t first_split = t.splits < 0 ? first_tile / split_tiles : t.split;
  const int64_t end_split = t.splits < 0 ? last_tile / split_tiles + 1 : t.split + t.splits;
  for (int64_t split = first_split; split < end_split; ++split) {
    for (int64_t r = 0; r < run.n; ++r) clear_state(c, run.state + r * stride);
    for (int64_t chunk = split * kSplitChunks; chunk < (split + 1) * kSplitChunks; ++chunk) {
      const int64_t t0 = at_least(chunk * kChunkTiles, first_tile / 2 * 2);  // in pairs, as products take them
      const int64_t t1 = at_most((chunk + 1) * kChunkTiles, last_tile + 1);
      if (t0 >= t1) continue;
      Chunk tiles;
      open_chunk(t, t0, static_cast<int>(t1 - t0), &tiles);
      look_ahead(t, t1, first_tile / 2 * 2, last_tile, &tiles);
      one(tiles);
    }
    for (int64_t r = 0; r < run.n; ++r) merge(c, run.total + r * stride, run.state + r * stride);
  }
}

inline void close_run(const Run& run) {
  const AttendTask& t = *run.t;
  const CacheLayout& c = *run.c;
  const int64_t stride = baseload::part_floats(c);
  for (int64_t r = 0; r < run.n; ++r) {
    if (t.out != nullptr) {
      finish(c, run.total + r * stride, t.out + r / c.groups * c.heads * c.dim + r % c.groups * c.dim);
    } else {
      __builtin_memcpy(t.part + r * stride, run.total + r * stride, static_cast<size_t>(stride) * 4);
    }
  }
}

template <Query Q, bool kFetch>
inline void one_chunk(const Run& run, const Chunk& chunk) {
  constexpr Weights kind =
      Q == Query::kInt16 ? Weights::kInt16 : Q == Query::kFloats ? Weights::kFloats : Weights::kBf16;
  constexpr int kRows = Q == Query::kInt16 ? S::kRInt : S::kR;
  const int64_t stride = baseload::part_floats(*run.c);
  int64_t r = 0;
  for (; r + kRows <= run.n; r += kRows) scores_rows<Q, kRows, kFetch>(run, r, chunk);
  for (; r + 2 <= run.n; r += 2) scores_rows<Q, 2, kFetch>(run, r, chunk);
  for (; r < run.n; ++r) scores_rows<Q, 1, kFetch>(run, r, chunk);
  for (r = 0; r < run.n; ++r)
    find_top<kind>(run, r, chunk, nullptr, run.scores + r * kColumns, run.state + r * stride);
  for (r = 0; r < run.n; ++r)
    weigh<kind>(run, r, chunk, run.scores + r * kColumns, run.weights + r * kColumns, run.state + r * stride);
  for (r = 0; r + kRows <= run.n; r += kRows) mix_rows<Q, kRows, kFetch>(run, r, chunk);
  for (; r + 2 <= run.n; r += 2) mix_rows<Q, 2, kFetch>(run, r, chunk);
  for (; r < run.n; ++r) mix_rows<Q, 1, kFetch>(run, r, chunk);
}

template <Query Q>
inline void walk_chunks(const Run& run) {
  walk(run, [&](const Chunk& chunk) { chunk.fetches ? one_chunk<Q, true>(run, chunk) : one_chunk<Q, false>(run, chunk); });
}

void attend(const AttendTask& t) {
  Run run;
  Room room{t.scratch};
  const int64_t vectors = t.rows * t.layout->groups;
  open_run(t, vectors, vectors, &room, &run);
  switch (query_of(*t.layout)) {
    case Query::kInt16:
      walk_chunks<Query::kInt16>(run);
      break;
    case Query::kFloats:
      if constexpr (S::kFloats) walk_chunks<Query::kFloats>(run);
      break;
    case Query::kBf16:
      if constexpr (!S::kFloats) walk_chunks<Query::kBf16>(run);
      break;
  }
  close_run(run);
}

}  // namespace
