"""The paged key-value cache: per layer two arrays [kv_heads, slots, head_dim], slot = block · block_tokens + offset.

bfloat16 is kept as its bits in uint16: XLA's CPU compiler turns a bfloat16 scatter into a conversion of the whole
cache to float32 and back (measured: 14 ms instead of 10 µs for one token in a 32 MB cache).
In 8 bits each position and head has a scale: codes from -127 to 127 are whole numbers that bfloat16 holds exactly, so
products are of codes, and the scales go to the scores and to the weights.
One block more than `blocks` exists: padded rows write there, and nobody reads it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax import lax

from baseload.domain.errors import ModelError
from baseload.domain.model import EngineSpec
from baseload.engine.config import ModelConfig

CHUNK_TOKENS = 256  # attention walks the cache in chunks of so many tokens
DEFAULT_CACHE_BYTES = 1 << 30
DEFAULT_CACHE_SHARE = 0.125  # of the machine's memory: all of it, not what is free now, so that programs still fit


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Size of the cache of one model. `max_context` is the longest sequence a block table can name."""

    layers: int
    kv_heads: int
    head_dim: int
    blocks: int
    block_tokens: int
    max_context: int
    dtype: str  # to compute in: "bfloat16" or "float32"
    int8: bool = False  # kept in 8 bits

    @property
    def storage(self) -> np.dtype[np.uint16] | np.dtype[np.float32]:
        """The element type the arrays are kept in."""
        return np.dtype(np.uint16) if self.dtype == "bfloat16" else np.dtype(np.float32)

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """Of one layer's keys (or values), the spare block included."""
        return (self.kv_heads, (self.blocks + 1) * self.block_tokens, self.head_dim)

    @property
    def compute(self) -> Any:
        """The type of products with keys and values."""
        return jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32

    @property
    def chunk_blocks(self) -> int:
        """Blocks per attention chunk."""
        return max(1, CHUNK_TOKENS // self.block_tokens)

    @property
    def chunk_tokens(self) -> int:
        """Tokens per attention chunk."""
        return self.chunk_blocks * self.block_tokens

    @property
    def table_blocks(self) -> int:
        """Width of a block table: enough whole chunks for `max_context`."""
        return -(-self.max_context // self.chunk_tokens) * self.chunk_blocks


@dataclass(frozen=True, slots=True)
class Quantized:
    """Keys (or values) of one layer in 8 bits; a pytree."""

    codes: Any  # int8[kv_heads, slots, head_dim]
    scales: Any  # float32[kv_heads, slots]


jax.tree_util.register_dataclass(Quantized, data_fields=["codes", "scales"], meta_fields=[])

Kept = jax.Array | Quantized  # keys or values of one layer


def empty(shape: CacheShape) -> Any:
    """Keys (or values) of one layer, nothing written: zeros on the host."""
    if not shape.int8:
        return np.zeros(shape.array_shape, shape.storage)
    return Quantized(np.zeros(shape.array_shape, np.int8), np.zeros(shape.array_shape[:2], np.float32))


def block_bytes(config: ModelConfig, block_tokens: int, dtype: str, *, int8: bool = False) -> int:
    """Bytes of one block over all layers, keys and values."""
    item = 2 if dtype == "bfloat16" else 4
    position = config.head_dim + 4 if int8 else config.head_dim * item
    return 2 * config.layers * config.kv_heads * block_tokens * position


def count_blocks(config: ModelConfig, spec: EngineSpec, per_block: int) -> int:
    """How many blocks of `per_block` bytes: as asked, else a share of the memory, but no more than can be used.

    Raises ModelError where not one has room.
    """
    context = min(spec.max_context or config.max_context, config.max_context)
    if spec.kv_cache_bytes:
        blocks = spec.kv_cache_bytes // per_block
    else:
        useful = spec.max_seqs * -(-context // spec.block_tokens)
        blocks = min(useful, default_cache_bytes() // per_block)
    if blocks < 1:
        raise ModelError(
            f"The KV cache has no room for one block of {per_block} bytes.",
            hint="Raise engine.kv_cache_bytes or free some memory.",
        )
    return blocks


def default_cache_bytes() -> int:
    """The most that a worker's cache takes where no size is asked for."""
    return min(int(psutil.virtual_memory().total * DEFAULT_CACHE_SHARE), DEFAULT_CACHE_BYTES)


def write(cache: Kept, slots: jax.Array, rows: jax.Array) -> Kept:
    """Stores rows[n, kv_heads, head_dim] at slots[n], in place where the cache is donated.

    What is not finite is stored as zero: a masked position has weight zero, and zero times infinity would
    leak one broken sequence into its neighbours.
    """
    finite = jnp.where(jnp.isfinite(rows), rows, 0.0).transpose(1, 0, 2)
    if isinstance(cache, Quantized):
        top = jnp.max(jnp.abs(finite), axis=-1)
        codes = jnp.round(finite * (127.0 / jnp.where(top > 0, top, 1.0))[..., None]).astype(jnp.int8)
        scales = cache.scales.at[:, slots].set(top / 127.0, mode="promise_in_bounds")
        return Quantized(cache.codes.at[:, slots].set(codes, mode="promise_in_bounds"), scales)
    if cache.dtype == jnp.uint16:
        stored = lax.bitcast_convert_type(finite.astype(jnp.bfloat16), jnp.uint16)
    else:
        stored = finite.astype(cache.dtype)
    return cache.at[:, slots].set(stored, mode="promise_in_bounds")


def gather(shape: CacheShape, cache: Kept, blocks: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The tokens of blocks[..., b] as [kv_heads, ..., b · block_tokens, head_dim], in the type to compute in.

    And what they are still to be multiplied by, float32[kv_heads, ..., b · block_tokens], where they are codes.
    """
    if isinstance(cache, Quantized):
        codes = _pages(cache.codes, blocks, shape.block_tokens).astype(shape.compute)
        return codes, _pages(cache.scales, blocks, shape.block_tokens)
    found = _pages(cache, blocks, shape.block_tokens)
    return lax.bitcast_convert_type(found, jnp.bfloat16) if cache.dtype == jnp.uint16 else found, None


def _pages(array: jax.Array, blocks: jax.Array, block_tokens: int) -> jax.Array:
    """[heads, ..., b · block_tokens, rest] of array[heads, slots, rest]."""
    heads, _, *rest = array.shape
    paged = array.reshape(heads, -1, block_tokens, *rest)
    found = paged.at[:, blocks].get(mode="promise_in_bounds")
    return found.reshape(heads, *blocks.shape[:-1], -1, *rest)
