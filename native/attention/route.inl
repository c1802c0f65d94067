// The choice of experts, and the transform before `down`. Included by body.inl.

namespace {

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
