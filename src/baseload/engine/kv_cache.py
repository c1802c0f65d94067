"""The paged key-value cache: per layer two arrays [kv_heads, slots, head_dim], slot = block · block_tokens + offset.

bfloat16 is kept as its bits in uint16: XLA's CPU compiler turns a bfloat16 scatter into a conversion of the whole
cache to float32 and back (measured: 14 ms instead of 10 µs for one token in a 32 MB cache).
One block more than `blocks` exists: padded rows write there, and nobody reads it.
"""

from dataclasses import dataclass

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
    dtype: str

    @property
    def storage(self) -> np.dtype[np.uint16] | np.dtype[np.float32]:
        """The element type the arrays are kept in."""
        return np.dtype(np.uint16) if self.dtype == "bfloat16" else np.dtype(np.float32)

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """Of one layer's keys (or values), the spare block included."""
        return (self.kv_heads, (self.blocks + 1) * self.block_tokens, self.head_dim)

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


def block_bytes(config: ModelConfig, block_tokens: int, dtype: str) -> int:
    """Bytes of one block over all layers, keys and values."""
    item = 2 if dtype == "bfloat16" else 4
    return 2 * config.layers * config.kv_heads * config.head_dim * block_tokens * item


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


def write(cache: jax.Array, slots: jax.Array, rows: jax.Array) -> jax.Array:
    """Stores rows[n, kv_heads, head_dim] at slots[n], in place where the cache is donated.

    What is not finite is stored as zero: a masked position has weight zero, and zero times infinity would
    leak one broken sequence into its neighbours.
    """
    finite = jnp.where(jnp.isfinite(rows), rows, 0.0)
    if cache.dtype == jnp.uint16:
        stored = lax.bitcast_convert_type(finite.astype(jnp.bfloat16), jnp.uint16)
    else:
        stored = finite.astype(cache.dtype)
    return cache.at[:, slots].set(stored.transpose(1, 0, 2), mode="promise_in_bounds")


def gather(cache: jax.Array, blocks: jax.Array, block_tokens: int) -> jax.Array:
    """The tokens of blocks[..., b] as [kv_heads, ..., b · block_tokens, head_dim], in the type to compute in."""
    heads, _, dim = cache.shape
    paged = cache.reshape(heads, -1, block_tokens, dim)
    found = paged.at[:, blocks].get(mode="promise_in_bounds")
    found = found.reshape(heads, *blocks.shape[:-1], -1, dim)
    return lax.bitcast_convert_type(found, jnp.bfloat16) if cache.dtype == jnp.uint16 else found
