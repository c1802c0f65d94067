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

// First of two passes over the vectors of a chunk, so that no exponential waits for a maximum: the largest of vector r's
// scores s[kColumns] with those before goes to run.highest[r], what the old sums are multiplied by to run.keep[r].
template <Weights W>
inline void find_top(const Run& run, int64_t r, const Chunk& chunk, const float* key_scales, float* s, float* state) {
  const int64_t position = run.t->first_position + r / run.c->groups;
  const bool sees_all =
      chunk.is_whole && position + 1 >= chunk.end && position - run.t->window + 1 <= chunk.first;
  F high = S::set(kNothing);
  for (int i = 0; i < chunk.count; ++i) {
    F x = S::load(s + i * kTile);
    if constexpr (W == Weights::kScaledBf16) x = S::mul(x, S::load(key_scales + i * kTile));
    if (!sees_all) x = hide(chunk, i, position, run.t->window, x);
    if (!sees_all || W == Weights::kScaledBf16) S::store(s + i * kTile, x);
    high = S::max(high, x);
  }
  float& top = state[run.c->dim_v];
  const float chunk_top = S::highest(high), new_top = chunk_top > top ? chunk_top : top;
  run.highest[r] = new_top;
  run.keep[r] = new_top == kNothing ? 1.0f : S::first(S::exp2(S::set(top - new_top)));
  top = new_top;
}

// Second pass: the weights of vector r, 2^(score - highest), to w[kColumns] (or over the scores); their sum to its state.
template <Weights W>
inline void weigh(const Run& run, int64_t r, const Chunk& chunk, float* s, uint16_t* w, float* state) {
  const int count = chunk.count;
  if (run.highest[r] == kNothing) {  // nothing seen so far
    run.unit[r] = 0.0f;
    run.shift[r] = 0;
    if constexpr (W == Weights::kFloats) {
      __builtin_memset(s, 0, static_cast<size_t>(count) * kTile * 4);
    } else {
      __builtin_memset(w, 0, static_cast<size_t>(count) * kTile * 2);
    }
    return;
  }
  const F shift = S::set(run.highest[r]);
  F total = S::set(0), peak = S::set(0);
  for (int i = 0; i < count; ++i) {
    const F p = S::weight2(S::sub(S::load(s + i * kTile), shift));
    total = S::add(total, p);
    if constexpr (W == Weights::kBf16) {
      S::store_bf16(w + i * kTile, p);
    } else if constexpr (W == Weights::kFloats) {
      S::store(s + i * kTile, p);
    } else {
      const F scaled = S::mul(p, S::load(chunk.value_scales + i * kTile));
      if constexpr (W == Weights::kScaledBf16) {
        S::store_bf16(w + i * kTile, scaled);
      } else {
        S::store(s + i * kTile, scaled);
        peak = S::max(peak, scaled);
      }
    }
  }
  if constexpr (W == Weights::kInt16) {
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
  float& sum = state[run.c->dim_v + 1];
  sum = sum * run.keep[r] + S::sum(total);
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
