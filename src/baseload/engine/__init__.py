"""Neural networks in JAX: models, KV cache, sampling, weights, compiled-program cache."""
