// Scores of query vectors with tiles of keys, and sums of values by their weights, in registers. Included by body.inl.

namespace {

constexpr int kColumns = kChunkTiles * kTile;  // scores of a vector in a chunk

// One AttendTask on its way.
struct Run {
  const AttendTask* t;
  const CacheLayout* c;
  int64_t n;                 // query vectors
  const uint8_t* q[256];     // each vector's query
  float scale[256];          // 16-bit integers: of the query
  int32_t offset[256];       // 16-bit integers: 128 · sum of the query's
  float* scores;             // [n][kColumns]; then the weights, where these are floats
  uint16_t* weights;         // [n][kColumns], bf16 or integers in widening order
  float* highest;            // [n]: the largest score so far
  float* keep;               // [n]: what the old sums are multiplied by
  float* unit;               // [n], integers: one step of `weights`
  int32_t* shift;            // [n], integers: 128 · sum of `weights`
  float *state, *total;      // [n][part_floats]
};

// The tiles of one step of the online softmax.
struct Chunk {
  int count;
  bool is_whole;                          // every tile has 16 positions
  int64_t first, end;                     // positions
  const uint8_t* tiles[kChunkTiles];
  bool fetches;                           // while keys and values of a tile are used, what is used a little later is fetched
  const uint8_t *with_keys[kChunkTiles], *with_values[kChunkTiles];
  int64_t start[kChunkTiles], lanes[kChunkTiles];
  alignas(64) float value_scales[kColumns];  // int8
};

// A single row waits for memory, and tiles lie apart: without this each of them would begin with a wait. Keys of all tiles
// are used, then values; fetched is what comes kLead tiles later. No further ahead: tiles of a sequence lie a multiple of
// large powers of two apart, so that all their first lines share the same few places of a core's caches.
inline void look_ahead(const AttendTask& t, int64_t next, int64_t first, int64_t last, Chunk* chunk) {
  constexpr int kLead = 4;
  const CacheLayout& c = *t.layout;
  chunk->fetches = t.rows == 1;
  if (!chunk->fetches) return;
  const bool is_last = next > last && t.kv_head + 1 == c.kv_heads;  // nothing is known of what follows
  const int64_t head = next <= last ? t.kv_head : t.kv_head + 1;
  for (int i = 0; i < chunk->count; ++i) {
    const int later = i + kLead - chunk->count;  // counted in the part that follows
    const int64_t tile = at_most((next <= last ? next : first) + later, last);
    chunk->with_keys[i] = later < 0 ? chunk->tiles[i + kLead] : chunk->tiles[at_most(later, i)] + c.value_offset;
    chunk->with_values[i] = later < 0 ? chunk->tiles[i + kLead] + c.value_offset
                            : is_last ? chunk->tiles[i]
                                      : t.cache + baseload::tile_offset(c, t.table, head, tile);
  }
}

inline void open_chunk(const AttendTask& t, int64_t t0, int count, Chunk* chunk) {
  const CacheLayout& c = *t.layout;
  chunk->count = count;
  chunk->is_whole = true;
  chunk->fetches = false;
  for (int i = 0; i < count; ++i) {
    chunk->tiles[i] = t.cache + baseload::tile_offset(c, t.table, t.kv_head, t0 + i);
    chunk->start[i] = baseload::tile_start(c, t0 + i);
    chunk->lanes[i] = baseload::tile_lanes(c, t0 + i);
    chunk->is_whole = chunk->is_whole && chunk->lanes[i] == kTile;
    if (c.int8)
      __builtin_memcpy(chunk->value_scales + i * kTile, chunk->tiles[i] + c.scale_offset + kTile * 4, kTile * 4);
  }
  chunk->first = chunk->start[0];
  chunk->end = chunk->start[count - 1] + chunk->lanes[count - 1];
}

template <int R, int T, bool kFetch>
inline void scores_bf16(const Run& run, int64_t r0, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out) {
  F acc[R][T];
  const uint32_t* q[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    q[r] = reinterpret_cast<const uint32_t*>(run.q[r0 + r]);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[r][t] = S::set(0);
  }
  const int64_t pairs = run.c->dim_k / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    I k[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      k[t] = S::loadi(tiles[t] + i * 64);
      if constexpr (kFetch) __builtin_prefetch(ahead[t] + i * 64);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const I pair = S::seti(q[r][i]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[r][t] = S::dot_bf16(acc[r][t], k[t], pair);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) S::store(out + r * kColumns + t * kTile, acc[r][t]);
}

template <int R, int T, bool kFetch>
inline void scores_int8(const Run& run, int64_t r0, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out) {
  I acc[R][T];
  const Words* q[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    q[r] = reinterpret_cast<const Words*>(run.q[r0 + r]);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[r][t] = S::seti(0);
  }
  const int64_t lines = run.c->dim_k / 4;
  for (int64_t i = 0; i < lines; ++i) {
    I even[T], odd[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const I k = S::loadi(tiles[t] + i * 64);
      if constexpr (kFetch) __builtin_prefetch(ahead[t] + i * 64);
      even[t] = S::even_bytes(k);
      odd[t] = S::odd_bytes(k);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const I a = S::set_from(q[r] + 2 * i);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[r][t] = S::dot_i16(acc[r][t], even[t], a);
      const I b = S::set_from(q[r] + 2 * i + 1);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[r][t] = S::dot_i16(acc[r][t], odd[t], b);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F scale = S::set(run.scale[r0 + r]);
    const I offset = S::seti(static_cast<uint32_t>(run.offset[r0 + r]));
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const F of_key = S::load(reinterpret_cast<const float*>(tiles[t] + run.c->scale_offset));
      const F x = S::mul(S::to_float(S::subi(acc[r][t], offset)), S::mul(of_key, scale));
      S::store(out + r * kColumns + t * kTile, x);
    }
  }
}

// acc[r][t] += the rows of floats times `pairs` lines of pairs of bf16, which are widened as they come.
template <int R, int T, bool kFetch>
inline void add_floats(F (&acc)[R][T], const float* const (&x)[R], const uint8_t* const (&lines)[T],
                       const uint8_t* const (&ahead)[T], int64_t line, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    F half[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      half[t] = S::low_bf16(lines[t] + i * line);
      if constexpr (kFetch) __builtin_prefetch(ahead[t] + i * line);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F a = S::set_from(x[r] + 2 * i);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) S::add_product(&acc[r][t], a, half[t]);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) half[t] = S::high_bf16(lines[t] + i * line);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F a = S::set_from(x[r] + 2 * i + 1);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) S::add_product(&acc[r][t], a, half[t]);
    }
  }
}

template <int R, int T, bool kFetch>
inline void scores_floats(const Run& run, int64_t r0, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out) {
  F acc[R][T];
  const float* q[R];
  const uint8_t *lines[T], *next[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    lines[t] = tiles[t];
    next[t] = kFetch ? ahead[t] : nullptr;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    q[r] = reinterpret_cast<const float*>(run.q[r0 + r]);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[r][t] = S::set(0);
  }
  add_floats<R, T, kFetch>(acc, q, lines, next, 64, run.c->dim_k / 2);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) S::store(out + r * kColumns + t * kTile, acc[r][t]);
}

template <Query Q, int R, int T, bool kFetch>
inline void scores(const Run& run, int64_t r0, const uint8_t* const* tiles, const uint8_t* const* ahead, float* out) {
  if constexpr (Q == Query::kInt16) {
    scores_int8<R, T, kFetch>(run, r0, tiles, ahead, out);
  } else if constexpr (Q == Query::kFloats) {
    scores_floats<R, T, kFetch>(run, r0, tiles, ahead, out);
  } else {
    scores_bf16<R, T, kFetch>(run, r0, tiles, ahead, out);
  }
}

template <Query Q, int R, bool kFetch>
inline void scores_rows(const Run& run, int64_t r0, const Chunk& chunk) {
  constexpr int kWide = R <= 2 ? S::kTFew : S::kT;
  float* out = run.scores + r0 * kColumns;
  int t = 0;
  for (; t + kWide <= chunk.count; t += kWide) {
    scores<Q, R, kWide, kFetch>(run, r0, chunk.tiles + t, chunk.with_keys + t, out + t * kTile);
  }
  for (; t < chunk.count; ++t) scores<Q, R, 1, kFetch>(run, r0, chunk.tiles + t, chunk.with_keys + t, out + t * kTile);
}

// values[d0 … d0 + 16 NV) of R vectors: state = state · keep + weights · values.
template <int R, int NV, bool kFetch>
inline void mix_bf16(const Run& run, int64_t r0, const Chunk& chunk, int64_t d0) {
  F acc[R][NV];
  const int64_t stride = baseload::part_floats(*run.c);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F keep = S::set(run.keep[r0 + r]);
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) acc[r][d] = S::mul(S::load(run.state + (r0 + r) * stride + d0 + d * 16), keep);
  }
  for (int t = 0; t < chunk.count; ++t) {
    const uint8_t* values = chunk.tiles[t] + run.c->value_offset + d0 * 4;
    [[maybe_unused]] const uint8_t* next = kFetch ? chunk.with_values[t] + d0 * 4 : nullptr;
    for (int pair = 0; pair < kTile / 2; ++pair, values += run.c->dim_v * 4) {
      I v[NV];
#pragma GCC unroll 8
      for (int d = 0; d < NV; ++d) {
        v[d] = S::loadi(values + d * 64);
        if constexpr (kFetch) __builtin_prefetch(next + pair * run.c->dim_v * 4 + d * 64);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        uint32_t w;
        __builtin_memcpy(&w, run.weights + (r0 + r) * kColumns + t * kTile + pair * 2, 4);
        const I p = S::seti(w);
#pragma GCC unroll 8
        for (int d = 0; d < NV; ++d) acc[r][d] = S::dot_bf16(acc[r][d], v[d], p);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) S::store(run.state + (r0 + r) * stride + d0 + d * 16, acc[r][d]);
}

template <int R, int NV, bool kFetch>
inline void mix_floats(const Run& run, int64_t r0, const Chunk& chunk, int64_t d0) {
  F acc[R][NV];
  const int64_t stride = baseload::part_floats(*run.c);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F keep = S::set(run.keep[r0 + r]);
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) acc[r][d] = S::mul(S::load(run.state + (r0 + r) * stride + d0 + d * 16), keep);
  }
  for (int t = 0; t < chunk.count; ++t) {
    const uint8_t *values[NV], *next[NV];
    const float* p[R];
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) {
      values[d] = chunk.tiles[t] + run.c->value_offset + (d0 + d * 16) * 4;
      next[d] = kFetch ? chunk.with_values[t] + (d0 + d * 16) * 4 : nullptr;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) p[r] = run.scores + (r0 + r) * kColumns + t * kTile;
    add_floats<R, NV, kFetch>(acc, p, values, next, run.c->dim_v * 4, kTile / 2);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) S::store(run.state + (r0 + r) * stride + d0 + d * 16, acc[r][d]);
}

template <int R, int NV, bool kFetch>
inline void mix_int8(const Run& run, int64_t r0, const Chunk& chunk, int64_t d0) {
  I acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) acc[r][d] = S::seti(0);
  for (int t = 0; t < chunk.count; ++t) {
    const uint8_t* values = chunk.tiles[t] + run.c->value_offset + d0 * 4;
    [[maybe_unused]] const uint8_t* next = kFetch ? chunk.with_values[t] + d0 * 4 : nullptr;
    for (int quad = 0; quad < kTile / 4; ++quad, values += run.c->dim_v * 4) {
      I even[NV], odd[NV];
#pragma GCC unroll 8
      for (int d = 0; d < NV; ++d) {
        const I v = S::loadi(values + d * 64);
        if constexpr (kFetch) __builtin_prefetch(next + quad * run.c->dim_v * 4 + d * 64);
        even[d] = S::even_bytes(v);
        odd[d] = S::odd_bytes(v);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const uint16_t* w = run.weights + (r0 + r) * kColumns + t * kTile + quad * 4;
        const I a = S::set_from(reinterpret_cast<const Words*>(w));
#pragma GCC unroll 8
        for (int d = 0; d < NV; ++d) acc[r][d] = S::dot_i16(acc[r][d], even[d], a);
        const I b = S::set_from(reinterpret_cast<const Words*>(w + 2));
#pragma GCC unroll 8
        for (int d = 0; d < NV; ++d) acc[r][d] = S::dot_i16(acc[r][d], odd[d], b);
      }
    }
  }
  const int64_t stride = baseload::part_floats(*run.c);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F keep = S::set(run.keep[r0 + r]), unit = S::set(run.unit[r0 + r]);
    const I shift = S::seti(static_cast<uint32_t>(run.shift[r0 + r]));
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) {
      float* at = run.state + (r0 + r) * stride + d0 + d * 16;
      const F old = S::mul(S::load(at), keep);
      S::store(at, S::fma(S::to_float(S::subi(acc[r][d], shift)), unit, old));
    }
  }
}

template <Query Q, int R, int NV, bool kFetch>
inline void mix(const Run& run, int64_t r0, const Chunk& chunk, int64_t d0) {
  if constexpr (Q == Query::kInt16) {
    mix_int8<R, NV, kFetch>(run, r0, chunk, d0);
  } else if constexpr (Q == Query::kFloats) {
    mix_floats<R, NV, kFetch>(run, r0, chunk, d0);
  } else {
    mix_bf16<R, NV, kFetch>(run, r0, chunk, d0);
  }
}

template <Query Q, int R, bool kFetch>
inline void mix_rows(const Run& run, int64_t r0, const Chunk& chunk) {
  constexpr int kWide = R <= 2 ? S::kTFew : S::kT;
  int64_t d = 0;
  for (; d + 16 * kWide <= run.c->dim_v; d += 16 * kWide) mix<Q, R, kWide, kFetch>(run, r0, chunk, d);
  for (; d < run.c->dim_v; d += 16) mix<Q, R, 1, kFetch>(run, r0, chunk, d);
}

}  // namespace
