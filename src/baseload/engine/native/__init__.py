"""CPU kernels in C++, called from JAX; without the built library, everything runs on XLA alone."""
