// Rows on their way into the cache: norm, rope, and the form in which queries, keys and values are kept. Included by
// body.inl.

namespace {

inline uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

inline bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

// Round to nearest even; NaN stays NaN.
inline uint16_t to_bf16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, broken = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? broken : rounded);
}

// x[dim] normed (weight given) and turned by the row's angles.
inline void norm_rope(float* __restrict x, int64_t dim, const float* __restrict norm, float eps,
                      const float* __restrict angles) {
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
  float* __restrict low = x;
  float* __restrict high = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = low[i], b = high[i];
    low[i] = a * c[i] - b * s[i];
    high[i] = b * c[i] + a * s[i];
  }
}

// The largest of x[n], n a multiple of 16, none of it below 0; what is not a number is not told apart here.
inline float largest(const float* x, int64_t n) {
  F top = S::set(0);
  for (int64_t i = 0; i < n; i += 16) top = S::max(top, S::absolute(S::load(x + i)));
  return S::highest(top);
}

inline bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= (bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
  return bad == 0;
}

// x[dim_v], 0 from dim on: the query of one head.
inline void store_q(const RowTask& t, int64_t head, float* x) {
  const CacheLayout& c = *t.layout;
  const F scale = S::set(kLog2e / __builtin_sqrtf(static_cast<float>(c.dim)));  // the softmax is one of powers of two
  for (int64_t i = 0; i < c.dim_v; i += 16) S::store(x + i, S::mul(S::load(x + i), scale));
  uint8_t* to = t.q + head * c.q_bytes;
  const Query kind = query_of(c);
  if (kind == Query::kFloats) {
    __builtin_memcpy(to, x, static_cast<size_t>(c.dim_v) * 4);
    return;
  }
  uint16_t* q = reinterpret_cast<uint16_t*>(to);
  if (kind == Query::kBf16) {
    for (int64_t i = 0; i < c.dim_v; ++i) q[i] = to_bf16(x[i]);
    return;
  }
  // 16-bit integers, in the order in which bytes 0, 2 and 1, 3 of a line are widened.
  float* extra = t.q_extra + 2 * head;
  if (!all_finite(x, c.dim)) {
    __builtin_memset(q, 0, static_cast<size_t>(c.dim_v) * 2);
    extra[0] = __builtin_nanf("");
    extra[1] = 0;
    return;
  }
  const float top = largest(x, c.dim_v);
  const F inverse = S::set(top > 0 ? kPInt / 2 / top : 0);
  I sum = S::seti(0);
  for (int64_t i = 0; i < c.dim_v; i += 16) {
    const I v = S::to_int(S::mul(S::load(x + i), inverse));
    sum = S::addi(sum, v);
    S::store_widening(q + i, v);
  }
  extra[0] = top / (kPInt / 2);
  const int32_t offset = 128 * S::sumi(sum);
  __builtin_memcpy(extra + 1, &offset, 4);
}

constexpr float kBeyondBf16 = 3.3961775e38f;  // rounds to infinity

// x[dim_v] as unsigned bytes of a step that is answered, 128 for 0.
inline float to_bytes(float* x, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; i += 16) S::store(x + i, S::below_or_zero(S::load(x + i), __builtin_inff()));
  const float top = largest(x, n);
  const F inverse = S::set(top > 0 ? 127.0f / top : 0);
  const I middle = S::seti(128);
  for (int64_t i = 0; i < n; i += 16)
    S::store_bytes(codes + i, S::addi(S::to_int(S::mul(S::load(x + i), inverse)), middle));
  return top / 127.0f;
}

// One head's key and value, dim_v numbers each, into lane `lane` of a tile.
inline void store_kv(const CacheLayout& c, uint8_t* tile, int lane, float* k, float* v) {
  if (lane == 0) __builtin_memset(tile, 0, static_cast<size_t>(c.tile_bytes));
  if (!c.int8) {
    alignas(64) uint16_t keys[kMaxDim], values[kMaxDim];
    for (int64_t i = 0; i < c.dim_v; i += 16) {
      S::store_bf16(keys + i, S::below_or_zero(S::load(k + i), kBeyondBf16));
      S::store_bf16(values + i, S::below_or_zero(S::load(v + i), kBeyondBf16));
    }
    for (int64_t i = 0; i < c.dim_k; i += 2) __builtin_memcpy(tile + (i / 2 * kTile + lane) * 4, keys + i, 4);
    uint16_t* to = reinterpret_cast<uint16_t*>(tile + c.value_offset) + (lane / 2) * c.dim_v * 2 + lane % 2;
    for (int64_t i = 0; i < c.dim; ++i) to[i * 2] = values[i];
    return;
  }
  alignas(64) uint8_t keys[kMaxDim], values[kMaxDim];
  float* scales = reinterpret_cast<float*>(tile + c.scale_offset);
  scales[lane] = to_bytes(k, c.dim_v, keys);
  scales[kTile + lane] = to_bytes(v, c.dim_v, values);
  for (int64_t i = 0; i < c.dim_k; i += 4) __builtin_memcpy(tile + (i * kTile / 4 + lane) * 4, keys + i, 4);
  uint8_t* to = tile + c.value_offset + (lane / 4) * c.dim_v * 4 + lane % 4;
  for (int64_t i = 0; i < c.dim; ++i) to[i * 4] = values[i];
}

void prepare(const RowTask& t) {
  const CacheLayout& c = *t.layout;
  alignas(64) float x[kMaxDim], v[kMaxDim];
  const size_t bytes = static_cast<size_t>(c.dim) * 4, rest = static_cast<size_t>(c.dim_v) * 4 - bytes;
  const auto take = [&](float* to, int64_t head) {
    __builtin_memcpy(to, t.qkv + head * c.dim, bytes);
    __builtin_memset(to + c.dim, 0, rest);
  };
  for (int64_t head = 0; head < c.heads; ++head) {
    take(x, head);
    norm_rope(x, c.dim, t.q_norm, t.eps, t.angles);
    store_q(t, head, x);
  }
  const baseload::Place place = baseload::place_of(c, t.position);
  for (int64_t head = 0; head < c.kv_heads; ++head) {
    take(x, c.heads + head);
    take(v, c.heads + c.kv_heads + head);
    norm_rope(x, c.dim, t.k_norm, t.eps, t.angles);
    store_kv(c, t.cache + baseload::tile_offset(c, t.table, head, place.tile), place.lane, x, v);
  }
}

}  // namespace
