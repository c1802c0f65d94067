// Attention on matrix tiles of 16 x 32 bfloat16 (T is RealTiles or EmulatedTiles, common/tile.h): both products run on
// them, the softmax between on lanes. Included behind body.inl.
//
// A chunk's values (and keys, where they are int8) are laid out once as tiles; then blocks of 32 query vectors go over it.
// Codes of int8 keys and values are whole numbers that bfloat16 holds exactly; their scales go to the scores and to the
// weights. Two tiles of vectors times two of positions (or of dimensions): four sums, each loaded tile used twice. A
// row's sums run over dimensions and positions in one order, whatever stands in the other rows of its tile, and what it
// does not see has the weight 0; so its bits are its own, in a prompt as in a single row.

namespace {

constexpr int64_t kBlock = 32;  // query vectors of one product

template <class T>
struct OnTiles {
  struct Memory {
    uint16_t* q;       // [vectors][dim]
    uint8_t* keys;     // [kChunkTiles][dim / 2][16][2], for int8
    uint8_t* values;   // [kChunkTiles / 2][dim_v / 16][16 pairs of positions][16][2]
    float* key_scales;  // [kColumns], for int8
  };

  static void attend(const AttendTask& t) {
    const CacheLayout& c = *t.layout;
    if (!baseload::fits_tiles(c)) return ::attend(t);
    Run run;
    Room room{t.scratch};
    const int64_t vectors = (t.rows * c.groups + kBlock - 1) / kBlock * kBlock;
    open_run(t, vectors, kBlock, &room, &run);
    Memory m;
    m.q = room.take<uint16_t>(vectors * c.dim);
    m.values = room.take<uint8_t>(kColumns * c.dim_v * 2);
    m.keys = c.int8 ? room.take<uint8_t>(kColumns * c.dim * 2) : nullptr;
    m.key_scales = c.int8 ? room.take<float>(kColumns) : nullptr;
    for (int64_t r = 0; r < run.n; ++r)
      __builtin_memcpy(m.q + r * c.dim, run.q[r], static_cast<size_t>(c.dim) * 2);
    __builtin_memset(m.q + run.n * c.dim, 0, static_cast<size_t>((vectors - run.n) * c.dim) * 2);
    __builtin_memset(run.weights, 0, kBlock * kColumns * 2);
    for (int64_t r = run.n; r < vectors; ++r) clear_state(c, run.state + r * baseload::part_floats(c));
    const int rows = run.n < 16 ? static_cast<int>(run.n) : 16;
    baseload::TileConfig config;
    for (int tile = 0; tile < 6; ++tile) config.set(tile, rows);
    for (int tile = 6; tile < 8; ++tile) config.set(tile, 16);
    T::configure(config);
    walk(run, [&](const Chunk& chunk) {
      const uint8_t* keys[kChunkTiles];
      stage(run, m, chunk, keys);
      for (int64_t r = 0; r < run.n; r += kBlock) {
        const int64_t count = at_most(kBlock, run.n - r);
        if (t.first_position + (r + count - 1) / c.groups < chunk.first) continue;  // sees nothing of it
        count > 16 ? block<true>(run, m, chunk, keys, r, count) : block<false>(run, m, chunk, keys, r, count);
      }
    });
    T::release();
    close_run(run);
  }

  static void stage(const Run& run, const Memory& m, const Chunk& chunk, const uint8_t** keys) {
    const CacheLayout& c = *run.c;
    const int64_t across = c.dim_v / 16, line = c.dim_v * 4;
    for (int i = 0; i < chunk.count; ++i) {
      const uint8_t* from = chunk.tiles[i] + c.value_offset;
      uint8_t* to = m.values + i / 2 * across * 1024 + i % 2 * 512;
      keys[i] = chunk.tiles[i];
      if (!c.int8) {
        for (int pair = 0; pair < kTile / 2; ++pair)
          for (int64_t d = 0; d < across; ++d)
            S::storei(to + d * 1024 + pair * 64, S::loadi(from + pair * line + d * 64));
        continue;
      }
      for (int quad = 0; quad < kTile / 4; ++quad)
        for (int64_t d = 0; d < across; ++d) {
          uint8_t* at = to + d * 1024 + quad * 128;
          S::widen_bytes(S::loadi(from + quad * line + d * 64), at, at + 64);
        }
      uint8_t* wide = m.keys + i * c.dim * kTile * 2;
      for (int64_t four = 0; four < c.dim / 4; ++four)
        S::widen_bytes(S::loadi(chunk.tiles[i] + four * 64), wide + four * 128, wide + four * 128 + 64);
      __builtin_memcpy(m.key_scales + i * kTile, chunk.tiles[i] + c.scale_offset, kTile * 4);
      keys[i] = wide;
    }
    if (chunk.count % 2) {  // tiles go in pairs: the missing one has no weight
      uint8_t* to = m.values + chunk.count / 2 * across * 1024 + 512;
      for (int64_t d = 0; d < across; ++d) __builtin_memset(to + d * 1024, 0, 512);
    }
  }

  // Query vectors [r0, r0 + count) over one chunk; kTwo: more than 16 of them.
  template <bool kTwo>
  static void block(const Run& run, const Memory& m, const Chunk& chunk, const uint8_t* const* keys, int64_t r0,
                    int64_t count) {
    const CacheLayout& c = *run.c;
    const int64_t stride = baseload::part_floats(c);
    for (int i = 0; i < chunk.count; i += 2)
      scores_of<kTwo>(m.q + r0 * c.dim, c.dim, keys[i], keys[i + 1 < chunk.count ? i + 1 : i], run.scores + i * kTile);
    for (int64_t i = 0; i < count; ++i) {
      float *state = run.state + (r0 + i) * stride, *s = run.scores + i * kColumns;
      c.int8 ? find_top<Weights::kScaledBf16>(run, r0 + i, chunk, m.key_scales, s, state)
             : find_top<Weights::kBf16>(run, r0 + i, chunk, nullptr, s, state);
    }
    for (int64_t i = 0; i < count; ++i) {
      float *state = run.state + (r0 + i) * stride, *s = run.scores + i * kColumns;
      uint16_t* weights = run.weights + i * kColumns;
      c.int8 ? weigh<Weights::kScaledBf16>(run, r0 + i, chunk, s, weights, state)
             : weigh<Weights::kBf16>(run, r0 + i, chunk, s, weights, state);
      if (chunk.count % 2) __builtin_memset(weights + chunk.count * kTile, 0, kTile * 2);
      const float keep = run.keep[r0 + i];
      if (keep != 1.0f)
        for (int64_t d = 0; d < c.dim_v; d += 16) S::store(state + d, S::mul(S::load(state + d), S::set(keep)));
    }
    const int64_t across = c.dim_v / 16;
    for (int64_t d = 0; d < across; d += 2)
      add_values<kTwo>(run.weights, m.values + d * 1024, across * 1024, (chunk.count + 1) / 2,
                       run.state + r0 * stride + d * 16, stride);
  }

  template <bool kTwo>
  static inline void scores_of(const uint16_t* q, int64_t dim, const uint8_t* first, const uint8_t* second, float* out) {
    T::template zero<0>();
    T::template zero<1>();
    if constexpr (kTwo) T::template zero<2>();
    if constexpr (kTwo) T::template zero<3>();
    for (int64_t i = 0; i < dim; i += 32) {
      T::template load<6>(first + i * 32, 64);
      T::template load<4>(q + i, dim * 2);
      T::template dot_bf16<0, 4, 6>();
      T::template load<7>(second + i * 32, 64);
      T::template dot_bf16<1, 4, 7>();
      if constexpr (kTwo) {
        T::template load<5>(q + 16 * dim + i, dim * 2);
        T::template dot_bf16<2, 5, 6>();
        T::template dot_bf16<3, 5, 7>();
      }
    }
    T::template store<0>(out, kColumns * 4);
    T::template store<1>(out + kTile, kColumns * 4);
    if constexpr (kTwo) T::template store<2>(out + 16 * kColumns, kColumns * 4);
    if constexpr (kTwo) T::template store<3>(out + 16 * kColumns + kTile, kColumns * 4);
  }

  // Two tiles of dimensions of the sums: state += weights · values, 32 positions a step.
  template <bool kTwo>
  static inline void add_values(const uint16_t* weights, const uint8_t* values, int64_t step, int steps, float* state,
                                int64_t stride) {
    T::template load<0>(state, stride * 4);
    T::template load<1>(state + 16, stride * 4);
    if constexpr (kTwo) T::template load<2>(state + 16 * stride, stride * 4);
    if constexpr (kTwo) T::template load<3>(state + 16 * stride + 16, stride * 4);
    for (int i = 0; i < steps; ++i) {
      T::template load<6>(values + i * step, 64);
      T::template load<4>(weights + i * 2 * kTile, kColumns * 2);
      T::template dot_bf16<0, 4, 6>();
      T::template load<7>(values + i * step + 1024, 64);
      T::template dot_bf16<1, 4, 7>();
      if constexpr (kTwo) {
        T::template load<5>(weights + 16 * kColumns + i * 2 * kTile, kColumns * 2);
        T::template dot_bf16<2, 5, 6>();
        T::template dot_bf16<3, 5, 7>();
      }
    }
    T::template store<0>(state, stride * 4);
    T::template store<1>(state + 16, stride * 4);
    if constexpr (kTwo) T::template store<2>(state + 16 * stride, stride * 4);
    if constexpr (kTwo) T::template store<3>(state + 16 * stride + 16, stride * 4);
  }
};

}  // namespace
