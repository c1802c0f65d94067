// The online softmax: scores of a chunk become weights, the maximum and the sum go on; parts are merged. Included by
// body.inl.

namespace {

// How the weights of a chunk are left for the product with the values.
enum class Weights {
  kBf16,        // in run.weights
  kFloats,      // in run.scores
  kInt16,       // in run.weights, times the values' scales: integers of run.unit, 15 bits of the largest
  kScaledBf16,  // in run.weights, times the values' scales; the scores are still to be multiplied by `key_scales`
};

// Positions that a query does not see get the weight nothing. `x` are scores of tile i.
inline F hide(const Chunk& chunk, int i, int64_t position, int64_t window, F x) {
  const int64_t start = chunk.start[i], lanes = chunk.lanes[i];
  const int64_t from = at_most(at_least(position - window + 1 - start, 0), lanes);
  const int64_t to = at_most(at_least(position - start + 1, 0), lanes);
  return S::keep_lanes(x, static_cast<int>(from), static_cast<int>(to), S::set(kNothing));
}

// Scores of vector r of the run in s[kColumns], whose weights go to w[kColumns]; `state` is its own. kWhole: all tiles of
// the chunk are there, and all of it is seen.
template <Weights W, bool kWhole>
inline void soften_some(const Run& run, int64_t r, const Chunk& chunk, const float* key_scales, float* s, uint16_t* w,
                        float* state) {
  const CacheLayout& c = *run.c;
  const int count = kWhole ? kChunkTiles : chunk.count;
  float &top = state[c.dim_v], &sum = state[c.dim_v + 1];
  F x[kChunkTiles], high = S::set(kNothing);
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    x[i] = S::load(s + i * kTile);
    if constexpr (W == Weights::kScaledBf16) x[i] = S::mul(x[i], S::load(key_scales + i * kTile));
    if constexpr (!kWhole) x[i] = hide(chunk, i, run.t->first_position + r / c.groups, run.t->window, x[i]);
    high = S::max(high, x[i]);
  }
  const float chunk_top = S::highest(high);
  const float new_top = chunk_top > top ? chunk_top : top;
  if (!kWhole && new_top == kNothing) {  // nothing seen so far
    run.keep[r] = 1.0f;
    run.unit[r] = 0.0f;
    run.shift[r] = 0;
    if constexpr (W == Weights::kFloats) {
      __builtin_memset(s, 0, static_cast<size_t>(count) * kTile * 4);
    } else {
      __builtin_memset(w, 0, static_cast<size_t>(count) * kTile * 2);
    }
    return;
  }
  const F shift = S::set(new_top);
  F total = S::set(0), peak = S::set(0);
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    const F p = S::weight2(S::sub(x[i], shift));
    total = S::add(total, p);
    if constexpr (W == Weights::kBf16) {
      S::store_bf16(w + i * kTile, p);
    } else if constexpr (W == Weights::kFloats) {
      S::store(s + i * kTile, p);
    } else {
      x[i] = S::mul(p, S::load(chunk.value_scales + i * kTile));
      if constexpr (W == Weights::kScaledBf16) S::store_bf16(w + i * kTile, x[i]);
      peak = S::max(peak, x[i]);
    }
  }
  if constexpr (W == Weights::kInt16) {
    const float largest_weight = S::highest(peak);
    const bool usable = largest_weight > 0 && is_finite(largest_weight);
    const F inverse = S::set(usable ? kPInt / largest_weight : 0.0f);
    I all = S::seti(0);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const I v = S::to_int(S::mul(x[i], inverse));
      all = S::addi(all, v);
      S::store_widening(w + i * kTile, v);
    }
    run.unit[r] = usable ? largest_weight / kPInt : largest_weight;
    run.shift[r] = 128 * S::sumi(all);
  }
  const float keep = S::first(S::exp2(S::set(top - new_top)));
  run.keep[r] = keep;
  top = new_top;
  sum = sum * keep + S::sum(total);
}

template <Weights W>
inline void soften(const Run& run, int64_t r, const Chunk& chunk, const float* key_scales, float* s, uint16_t* w,
                   float* state) {
  const int64_t position = run.t->first_position + r / run.c->groups;
  const bool sees_all = chunk.is_whole && chunk.count == kChunkTiles && position + 1 >= chunk.end &&
                        position - run.t->window + 1 <= chunk.first;
  if (sees_all) {
    soften_some<W, true>(run, r, chunk, key_scales, s, w, state);
  } else {
    soften_some<W, false>(run, r, chunk, key_scales, s, w, state);
  }
}

inline void clear_state(const CacheLayout& c, float* state) {
  __builtin_memset(state, 0, static_cast<size_t>(baseload::part_floats(c)) * 4);
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

}  // namespace
