// The attention kernels, written once over a type `S` of 16 lanes and compiled per instruction set.
// Everything is in an anonymous namespace and uses no standard templates, so that no instruction of a wide set can
// reach a machine without it through the linker's choice among equal functions.

namespace {

using baseload::AttendTask;
using baseload::CacheLayout;
using baseload::kChunkTiles;
using baseload::kSplitChunks;
using baseload::kTile;
using baseload::RouteTask;
using baseload::RowTask;
using F = S::F;
using I = S::I;

constexpr float kNothing = -__builtin_inff();
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kPInt = 32767.0f;  // weights of int8 values are rounded to 15 bits of the chunk's largest

inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

inline uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

inline bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// Round to nearest even; NaN stays NaN.
inline uint16_t to_bf16(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline uint16_t to_finite_bf16(float x) {
  const uint16_t b = to_bf16(x);
  return (b & 0x7f80u) == 0x7f80u ? 0 : b;
}

// x[dim] normed (weight given) and turned by the row's angles.
inline void norm_rope(float* x, int64_t dim, const float* norm, float eps, const float* angles) {
  if (norm != nullptr) {
    float parts[16] = {};
    for (int64_t i = 0; i + 16 <= dim; i += 16)
      for (int j = 0; j < 16; ++j) parts[j] += x[i + j] * x[i + j];
    for (int64_t i = dim / 16 * 16; i < dim; ++i) parts[i % 16] += x[i] * x[i];
    float sum = 0;
    for (int j = 0; j < 16; ++j) sum += parts[j];
    const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(dim) + eps);
    for (int64_t i = 0; i < dim; ++i) x[i] = x[i] * scale * norm[i];
  }
  const int64_t half = dim / 2;
  const float *c = angles, *s = angles + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * c[i] - b * s[i];
    x[i + half] = b * c[i] + a * s[i];
  }
}

inline float largest(const float* x, int64_t n) {  // 0 where anything is not finite is not told apart here
  float top = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float a = __builtin_fabsf(x[i]);
    top = a > top ? a : top;
  }
  return top;
}

inline bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= (bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
  return bad == 0;
}

inline int32_t nearest(float x) { return static_cast<int32_t>(__builtin_rintf(x)); }

inline void store_q(const RowTask& t, int64_t head, float* x) {
  const CacheLayout& c = *t.layout;
  const float scale = kLog2e / __builtin_sqrtf(static_cast<float>(c.dim));  // the softmax is one of powers of two
  uint16_t* q = reinterpret_cast<uint16_t*>(t.q + head * c.q_bytes);
  for (int64_t i = 0; i < c.dim; ++i) x[i] *= scale;
  for (int64_t i = c.dim; i < c.dim_k; ++i) x[i] = 0;
  if (!c.int8) {
    for (int64_t i = 0; i < c.dim_k; ++i) q[i] = to_bf16(x[i]);
    return;
  }
  // 16-bit integers, in the order in which bytes 0, 2 and 1, 3 of a line are widened.
  float* extra = t.q_extra + 2 * head;
  if (!all_finite(x, c.dim)) {
    for (int64_t i = 0; i < c.dim_k; ++i) q[i] = 0;
    extra[0] = __builtin_nanf("");
    extra[1] = 0;
    return;
  }
  const float top = largest(x, c.dim), inverse = top > 0 ? kPInt / 2 / top : 0;
  static const int order[4] = {0, 2, 1, 3};
  int64_t sum = 0;
  for (int64_t i = 0; i < c.dim_k; i += 4)
    for (int j = 0; j < 4; ++j) {
      const int32_t v = nearest(x[i + order[j]] * inverse);
      q[i + j] = static_cast<uint16_t>(static_cast<int16_t>(v));
      sum += v;
    }
  extra[0] = top / (kPInt / 2);
  __builtin_memset(extra + 1, 0, 4);
  const int32_t offset = static_cast<int32_t>(128 * sum);
  __builtin_memcpy(extra + 1, &offset, 4);
}

// One head's key and value into lane `lane` of a tile.
inline void store_kv(const CacheLayout& c, uint8_t* tile, int lane, float* k, float* v) {
  if (lane == 0) __builtin_memset(tile, 0, static_cast<size_t>(c.tile_bytes));
  for (int64_t i = c.dim; i < c.dim_k; ++i) k[i] = 0;
  if (!c.int8) {
    uint16_t* keys = reinterpret_cast<uint16_t*>(tile);
    for (int64_t i = 0; i < c.dim_k; i += 2) {
      const uint32_t pair = to_finite_bf16(k[i]) | static_cast<uint32_t>(to_finite_bf16(k[i + 1])) << 16;
      __builtin_memcpy(keys + (i / 2 * kTile + lane) * 2, &pair, 4);
    }
    uint16_t* values = reinterpret_cast<uint16_t*>(tile + c.value_offset) + (lane / 2) * c.dim_v * 2 + lane % 2;
    for (int64_t i = 0; i < c.dim; ++i) values[i * 2] = to_finite_bf16(v[i]);
    return;
  }
  for (int64_t i = 0; i < c.dim; ++i) k[i] = is_finite(k[i]) ? k[i] : 0;
  for (int64_t i = 0; i < c.dim; ++i) v[i] = is_finite(v[i]) ? v[i] : 0;
  float* scales = reinterpret_cast<float*>(tile + c.scale_offset);
  const float top_k = largest(k, c.dim), top_v = largest(v, c.dim);
  const float inverse_k = top_k > 0 ? 127.0f / top_k : 0, inverse_v = top_v > 0 ? 127.0f / top_v : 0;
  scales[lane] = top_k / 127.0f;
  scales[kTile + lane] = top_v / 127.0f;
  for (int64_t i = 0; i < c.dim_k; ++i)
    tile[(i / 4 * kTile + lane) * 4 + i % 4] = static_cast<uint8_t>(nearest(k[i] * inverse_k) + 128);
  uint8_t* values = tile + c.value_offset + (lane / 4) * c.dim_v * 4 + lane % 4;
  for (int64_t i = 0; i < c.dim; ++i) values[i * 4] = static_cast<uint8_t>(nearest(v[i] * inverse_v) + 128);
}

constexpr int64_t kMaxDim = 1024;

void prepare(const RowTask& t) {
  const CacheLayout& c = *t.layout;
  alignas(64) float x[kMaxDim + 4], v[kMaxDim];
  const size_t bytes = static_cast<size_t>(c.dim) * 4;
  for (int64_t head = 0; head < c.heads; ++head) {
    __builtin_memcpy(x, t.qkv + head * c.dim, bytes);
    norm_rope(x, c.dim, t.q_norm, t.eps, t.angles);
    store_q(t, head, x);
  }
  const baseload::Place place = baseload::place_of(c, t.position);
  for (int64_t head = 0; head < c.kv_heads; ++head) {
    __builtin_memcpy(x, t.qkv + (c.heads + head) * c.dim, bytes);
    __builtin_memcpy(v, t.qkv + (c.heads + c.kv_heads + head) * c.dim, bytes);
    norm_rope(x, c.dim, t.k_norm, t.eps, t.angles);
    store_kv(c, t.cache + baseload::tile_offset(c, t.table, head, place.tile), place.lane, x, v);
  }
}

// One AttendTask on its way.
struct Run {
  const AttendTask* t;
  const CacheLayout* c;
  int64_t n;                          // query vectors
  const uint8_t* q[256];              // each vector's query
  float scale[256];                   // int8: of the query
  int32_t offset[256];                // int8: 128 · sum of the query's integers
  float* scores;                      // [n][kChunkTiles · kTile]
  uint16_t* weights;                  // [n][kChunkTiles · kTile], bf16 or integers in widening order
  float* keep;                        // [n]: what the old sums are multiplied by
  float* unit;                        // [n], int8: one step of `weights`
  int32_t* shift;                     // [n], int8: 128 · sum of `weights`
  float *state, *total;               // [n][dim_v + 2]
};

template <int R, int T>
inline void scores_bf16(const Run& run, int64_t r0, const uint8_t* const* tiles, float* out) {
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
    for (int t = 0; t < T; ++t) k[t] = S::loadi(tiles[t] + i * 64);
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
    for (int t = 0; t < T; ++t) S::store(out + r * kChunkTiles * kTile + t * kTile, acc[r][t]);
}

template <int R, int T>
inline void scores_int8(const Run& run, int64_t r0, const uint8_t* const* tiles, float* out) {
  I acc[R][T];
  const uint32_t* q[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    q[r] = reinterpret_cast<const uint32_t*>(run.q[r0 + r]);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[r][t] = S::seti(0);
  }
  const int64_t lines = run.c->dim_k / 4;
  for (int64_t i = 0; i < lines; ++i) {
    I even[T], odd[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const I k = S::loadi(tiles[t] + i * 64);
      even[t] = S::even_bytes(k);
      odd[t] = S::odd_bytes(k);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const I a = S::seti(q[r][2 * i]), b = S::seti(q[r][2 * i + 1]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[r][t] = S::dot_i16(S::dot_i16(acc[r][t], even[t], a), odd[t], b);
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
      S::store(out + r * kChunkTiles * kTile + t * kTile, x);
    }
  }
}

template <int R, int T>
inline void scores(const Run& run, int64_t r0, const uint8_t* const* tiles, float* out) {
  if (run.c->int8)
    scores_int8<R, T>(run, r0, tiles, out);
  else
    scores_bf16<R, T>(run, r0, tiles, out);
}

template <int R>
inline void scores_rows(const Run& run, int64_t r0, const uint8_t* const* tiles, int count) {
  float* out = run.scores + r0 * kChunkTiles * kTile;
  int t = 0;
  for (; t + S::kT <= count; t += S::kT) scores<R, S::kT>(run, r0, tiles + t, out + t * kTile);
  for (; t < count; ++t) scores<R, 1>(run, r0, tiles + t, out + t * kTile);
}

// values[d0 … d0 + 16 NV) of R vectors: state = state · keep + weights · values.
template <int R, int NV>
inline void mix_bf16(const Run& run, int64_t r0, const uint8_t* const* tiles, int count, int64_t d0) {
  F acc[R][NV];
  const int64_t stride = run.c->dim_v + 2;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F keep = S::set(run.keep[r0 + r]);
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) acc[r][d] = S::mul(S::load(run.state + (r0 + r) * stride + d0 + d * 16), keep);
  }
  for (int t = 0; t < count; ++t) {
    const uint8_t* values = tiles[t] + run.c->value_offset + d0 * 4;
    for (int pair = 0; pair < kTile / 2; ++pair, values += run.c->dim_v * 4) {
      I v[NV];
#pragma GCC unroll 8
      for (int d = 0; d < NV; ++d) v[d] = S::loadi(values + d * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        uint32_t w;
        __builtin_memcpy(&w, run.weights + (r0 + r) * kChunkTiles * kTile + t * kTile + pair * 2, 4);
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

template <int R, int NV>
inline void mix_int8(const Run& run, int64_t r0, const uint8_t* const* tiles, int count, int64_t d0) {
  I acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int d = 0; d < NV; ++d) acc[r][d] = S::seti(0);
  for (int t = 0; t < count; ++t) {
    const uint8_t* values = tiles[t] + run.c->value_offset + d0 * 4;
    for (int quad = 0; quad < kTile / 4; ++quad, values += run.c->dim_v * 4) {
      I even[NV], odd[NV];
#pragma GCC unroll 8
      for (int d = 0; d < NV; ++d) {
        const I v = S::loadi(values + d * 64);
        even[d] = S::even_bytes(v);
        odd[d] = S::odd_bytes(v);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        uint32_t w[2];
        __builtin_memcpy(w, run.weights + (r0 + r) * kChunkTiles * kTile + t * kTile + quad * 4, 8);
        const I a = S::seti(w[0]), b = S::seti(w[1]);
#pragma GCC unroll 8
        for (int d = 0; d < NV; ++d) acc[r][d] = S::dot_i16(S::dot_i16(acc[r][d], even[d], a), odd[d], b);
      }
    }
  }
  const int64_t stride = run.c->dim_v + 2;
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

template <int R, int NV>
inline void mix(const Run& run, int64_t r0, const uint8_t* const* tiles, int count, int64_t d0) {
  if (run.c->int8)
    mix_int8<R, NV>(run, r0, tiles, count, d0);
  else
    mix_bf16<R, NV>(run, r0, tiles, count, d0);
}

template <int R>
inline void mix_rows(const Run& run, int64_t r0, const uint8_t* const* tiles, int count) {
  int64_t d = 0;
  for (; d + 16 * S::kV <= run.c->dim_v; d += 16 * S::kV) mix<R, S::kV>(run, r0, tiles, count, d);
  for (; d < run.c->dim_v; d += 16) mix<R, 1>(run, r0, tiles, count, d);
}

// Scores of one vector become weights; its maximum and sum go on. `t0` is the first tile in the sequence's count.
inline void soften(const Run& run, int64_t r, int64_t t0, int count) {
  const AttendTask& t = *run.t;
  const CacheLayout& c = *run.c;
  const int64_t position = t.first_position + r / c.groups;
  float* s = run.scores + r * kChunkTiles * kTile;
  uint16_t* w = run.weights + r * kChunkTiles * kTile;
  float* state = run.state + r * (c.dim_v + 2);
  float &top = state[c.dim_v], &sum = state[c.dim_v + 1];
  const F nothing = S::set(kNothing);
  F high = nothing;
  for (int i = 0; i < count; ++i) {
    const int64_t start = baseload::tile_start(c, t0 + i), lanes = baseload::tile_lanes(c, t0 + i);
    const int64_t from = at_most(at_least(position - t.window + 1 - start, 0), lanes);
    const int64_t to = at_most(at_least(position - start + 1, 0), lanes);
    F x = S::load(s + i * kTile);
    if (from > 0 || to < kTile) {
      x = S::keep_lanes(x, static_cast<int>(from), static_cast<int>(to), nothing);
      S::store(s + i * kTile, x);
    }
    high = S::max(high, x);
  }
  const float chunk_top = S::highest(high);
  const float new_top = chunk_top > top ? chunk_top : top;
  if (new_top == kNothing) {  // nothing seen so far
    run.keep[r] = 1.0f;
    run.unit[r] = 0.0f;
    run.shift[r] = 0;
    __builtin_memset(w, 0, static_cast<size_t>(count) * kTile * 2);
    return;
  }
  const F shift = S::set(new_top);
  const float keep = S::first(S::exp2(S::set(top - new_top)));
  F total = S::set(0);
  if (!c.int8) {
    for (int i = 0; i < count; ++i) {
      const F p = S::exp2(S::sub(S::load(s + i * kTile), shift));
      total = S::add(total, p);
      S::store_bf16(w + i * kTile, p);
    }
  } else {
    F peak = S::set(0);
    for (int i = 0; i < count; ++i) {
      const F p = S::exp2(S::sub(S::load(s + i * kTile), shift));
      total = S::add(total, p);
      // The address of the tile is not at hand here; `values_scale` was laid beside the scores.
      const F scaled = S::mul(p, S::load(run.total + run.n * (c.dim_v + 2) + i * kTile));
      S::store(s + i * kTile, scaled);
      peak = S::max(peak, scaled);
    }
    const float largest_weight = S::highest(peak);
    const bool usable = largest_weight > 0 && is_finite(largest_weight);
    const F inverse = S::set(usable ? kPInt / largest_weight : 0.0f);
    I all = S::seti(0);
    for (int i = 0; i < count; ++i) {
      const I v = S::to_int(S::mul(S::load(s + i * kTile), inverse));
      all = S::addi(all, v);
      S::store_widening(w + i * kTile, v);
    }
    run.unit[r] = usable ? largest_weight / kPInt : largest_weight;
    run.shift[r] = 128 * S::sumi(all);
  }
  run.keep[r] = keep;
  top = new_top;
  sum = sum * keep + S::sum(total);
}

inline void one_chunk(const Run& run, int64_t t0, int count) {
  const AttendTask& t = *run.t;
  const CacheLayout& c = *run.c;
  const uint8_t* tiles[kChunkTiles];
  float* value_scales = run.total + run.n * (c.dim_v + 2);
  for (int i = 0; i < count; ++i) {
    tiles[i] = t.cache + baseload::tile_offset(c, t.table, t.kv_head, t0 + i);
    if (c.int8) __builtin_memcpy(value_scales + i * kTile, tiles[i] + c.scale_offset + kTile * 4, kTile * 4);
  }
  int64_t r = 0;
  for (; r + S::kR <= run.n; r += S::kR) scores_rows<S::kR>(run, r, tiles, count);
  for (; r + 2 <= run.n; r += 2) scores_rows<2>(run, r, tiles, count);
  for (; r < run.n; ++r) scores_rows<1>(run, r, tiles, count);
  for (r = 0; r < run.n; ++r) soften(run, r, t0, count);
  for (r = 0; r + S::kR <= run.n; r += S::kR) mix_rows<S::kR>(run, r, tiles, count);
  for (; r + 2 <= run.n; r += 2) mix_rows<2>(run, r, tiles, count);
  for (; r < run.n; ++r) mix_rows<1>(run, r, tiles, count);
}

inline void clear_state(const CacheLayout& c, float* state) {
  __builtin_memset(state, 0, static_cast<size_t>(c.dim_v + 2) * 4);
  state[c.dim_v] = kNothing;
}

void merge(const CacheLayout& c, float* total, const float* part) {
  float &top = total[c.dim_v], &sum = total[c.dim_v + 1];
  const float other = part[c.dim_v];
  if (other == kNothing && part[c.dim_v + 1] == 0.0f) return;
  if (top == kNothing && sum == 0.0f) {
    __builtin_memcpy(total, part, static_cast<size_t>(c.dim_v + 2) * 4);
    return;
  }
  const float new_top = other > top ? other : top;
  const float a = S::first(S::exp2(S::set(top - new_top))), b = S::first(S::exp2(S::set(other - new_top)));
  const F fa = S::set(a), fb = S::set(b);
  for (int64_t d = 0; d < c.dim_v; d += 16)
    S::store(total + d, S::fma(S::load(part + d), fb, S::mul(S::load(total + d), fa)));
  sum = sum * a + part[c.dim_v + 1] * b;
  top = new_top;
}

void finish(const CacheLayout& c, const float* total, float* out) {
  const float sum = total[c.dim_v + 1];
  const float inverse = 1.0f / (sum < 1e-30f ? 1e-30f : sum);
  for (int64_t d = 0; d < c.dim; ++d) out[d] = total[d] * inverse;
}

void attend(const AttendTask& t) {
  const CacheLayout& c = *t.layout;
  const int64_t stride = c.dim_v + 2, last_position = t.first_position + t.rows - 1;
  Run run;
  run.t = &t;
  run.c = &c;
  run.n = t.rows * c.groups;
  uint8_t* scratch = t.scratch;
  run.scores = reinterpret_cast<float*>(scratch);
  scratch += run.n * kChunkTiles * kTile * 4;
  run.weights = reinterpret_cast<uint16_t*>(scratch);
  scratch += run.n * kChunkTiles * kTile * 2;
  run.keep = reinterpret_cast<float*>(scratch);
  run.unit = run.keep + run.n;
  run.shift = reinterpret_cast<int32_t*>(run.unit + run.n);
  run.state = reinterpret_cast<float*>(run.shift + run.n);
  run.total = run.state + run.n * stride;
  for (int64_t r = 0; r < run.n; ++r) {
    const int64_t row = r / c.groups, group = r % c.groups;
    run.q[r] = t.q + (row * c.heads + group) * c.q_bytes;
    if (c.int8) {
      run.scale[r] = t.q_extra[(row * c.heads + group) * 2];
      __builtin_memcpy(&run.offset[r], &t.q_extra[(row * c.heads + group) * 2 + 1], 4);
    }
    clear_state(c, run.total + r * stride);
  }
  const int64_t first_tile = baseload::place_of(c, baseload::first_seen(t.first_position, t.window)).tile;
  const int64_t last_tile = baseload::place_of(c, last_position).tile;
  const int64_t split_tiles = kChunkTiles * kSplitChunks;
  const int64_t first_split = t.splits < 0 ? first_tile / split_tiles : t.split;
  const int64_t end_split = t.splits < 0 ? last_tile / split_tiles + 1 : t.split + t.splits;
  for (int64_t split = first_split; split < end_split; ++split) {
    for (int64_t r = 0; r < run.n; ++r) clear_state(c, run.state + r * stride);
    for (int64_t chunk = split * kSplitChunks; chunk < (split + 1) * kSplitChunks; ++chunk) {
      const int64_t t0 = at_least(chunk * kChunkTiles, first_tile);
      const int64_t t1 = at_most((chunk + 1) * kChunkTiles, last_tile + 1);
      if (t0 < t1) one_chunk(run, t0, static_cast<int>(t1 - t0));
    }
    for (int64_t r = 0; r < run.n; ++r) merge(c, run.total + r * stride, run.state + r * stride);
  }
  for (int64_t r = 0; r < run.n; ++r) {
    if (t.out != nullptr)
      finish(c, run.total + r * stride, t.out + r / c.groups * c.heads * c.dim + r % c.groups * c.dim);
    else
      __builtin_memcpy(t.part + r * stride, run.total + r * stride, static_cast<size_t>(stride) * 4);
  }
}

// Softmax of logits[experts] and the `chosen` largest, the lower index first among equals.
inline void choose(const RouteTask& t, float* logits, int32_t* experts, float* weights) {
  float top = logits[0], sum = 0;
  for (int64_t e = 1; e < t.experts; ++e) top = logits[e] > top ? logits[e] : top;
  for (int64_t e = 0; e < t.experts; ++e) {
    logits[e] = S::first(S::exp2(S::set((logits[e] - top) * kLog2e)));
    sum += logits[e];
  }
  float kept = 0;
  for (int64_t i = 0; i < t.chosen; ++i) {
    int64_t best = -1;
    for (int64_t e = 0; e < t.experts; ++e) {
      bool taken = false;
      for (int64_t j = 0; j < i; ++j) taken = taken || experts[j] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    experts[i] = static_cast<int32_t>(best);
    weights[i] = logits[best] / sum;
    kept += weights[i];
  }
  if (t.normalize)
    for (int64_t i = 0; i < t.chosen; ++i) weights[i] /= kept;
}

template <int R>
inline void route_logits(const RouteTask& t, const float* x, int64_t padded, const float* router, float* out) {
  F acc[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = S::set(0);
  const int64_t whole = t.hidden / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    const F w = S::load(router + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = S::fma(S::load(x + r * padded + i), w, acc[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    float sum = S::sum(acc[r]);
    for (int64_t i = whole; i < t.hidden; ++i) sum += x[r * padded + i] * router[i];
    out[r * t.experts] = sum;
  }
}

void route(const RouteTask& t) {
  const int64_t padded = (t.hidden + 15) / 16 * 16;
  float* logits = t.scratch + baseload::kRouteRows * padded;
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* x = t.x + r * t.hidden;
    float* normed = t.scratch + r * padded;
    float parts[16] = {};
    for (int64_t i = 0; i + 16 <= t.hidden; i += 16)
      for (int j = 0; j < 16; ++j) parts[j] += x[i + j] * x[i + j];
    for (int64_t i = t.hidden / 16 * 16; i < t.hidden; ++i) parts[i % 16] += x[i] * x[i];
    float sum = 0;
    for (int j = 0; j < 16; ++j) sum += parts[j];
    const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(t.hidden) + t.eps);
    for (int64_t i = 0; i < t.hidden; ++i) normed[i] = x[i] * scale * t.norm[i];
  }
  for (int64_t e = 0; e < t.experts; ++e) {
    int64_t r = 0;
    for (; r + 4 <= t.rows; r += 4)
      route_logits<4>(t, t.scratch + r * padded, padded, t.router + e * t.hidden, logits + r * t.experts + e);
    for (; r < t.rows; ++r)
      route_logits<1>(t, t.scratch + r * padded, padded, t.router + e * t.hidden, logits + r * t.experts + e);
  }
  for (int64_t r = 0; r < t.rows; ++r)
    choose(t, logits + r * t.experts, t.experts_out + r * t.chosen, t.weights_out + r * t.chosen);
}

void hadamard(float* x, int64_t size, int64_t block) {
  const F scale = S::set(1.0f / __builtin_sqrtf(static_cast<float>(block)));
  for (int64_t at = 0; at < size; at += block) {
    float* p = x + at;
    for (int64_t i = 0; i < block; i += 16) {
      F v = S::mul(S::load(p + i), scale);
      v = S::butterfly1(v);
      v = S::butterfly2(v);
      v = S::butterfly4(v);
      S::store(p + i, S::butterfly8(v));
    }
    for (int64_t half = 16; half < block; half *= 2)
      for (int64_t i = 0; i < block; i += 2 * half)
        for (int64_t j = i; j < i + half; j += 16) {
          const F a = S::load(p + j), b = S::load(p + j + half);
          S::store(p + j, S::add(a, b));
          S::store(p + j + half, S::sub(a, b));
        }
  }
}

}  // namespace
