"""Fewer bits per weight: float weights to packed 8-bit or 4-bit codes, and how faithful the result is."""
