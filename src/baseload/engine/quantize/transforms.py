"""Changes of a model's weights that leave what it computes as it is, and make it easier to round.

`rotate` turns the residual stream by a random orthogonal matrix, folding the norms' weights into what follows them
(QuaRot: Ashkboos et al. 2024): channels with outliers are spread over all. `hadamard` is done to the columns of
`down`, and by the engine to what enters it: SwiGLU's output has few large values at other places for each token.
Factors that a matrix exchanges with what enters it: quantize/equalize.py.
"""

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from baseload.engine.config import ModelConfig

Matrix = NDArray[np.float32]
Layer = dict[str, Matrix]
HADAMARD_BLOCK = 64


def orthogonal(size: int, seed: int) -> Matrix:
    """A random orthogonal matrix float32[size, size]."""
    rng = np.random.Generator(np.random.PCG64(seed))
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    turned: Matrix = np.asarray(q * np.sign(np.diag(r)), np.float32)
    return turned


def rotate_layer(layer: Layer, turn: Matrix) -> Layer:
    """The layer for a residual stream x · turn; its norms weigh 1."""
    out = dict(layer)
    for norm, readers in (("attn_norm", ("qkv",)), ("feed_norm", ("gate_up", "router", "experts.gate_up"))):
        for name in readers:
            if name in layer:
                scaled: Matrix = layer[name] * layer[norm]
                out[name] = _turned(scaled, turn)
        out[norm] = np.ones_like(layer[norm])
    for name in ("out", "down", "experts.down"):
        if name in layer:
            rows: Matrix = layer[name]
            out[name] = np.stack([_out_of(turn, one) for one in rows]) if rows.ndim == 3 else _out_of(turn, rows)
    for name in ("out_bias", "down_bias"):
        if name in layer:
            out[name] = layer[name] @ turn
    return out


def rotate_top(top: Layer, turn: Matrix) -> Layer:
    """Embedding and head for a residual stream x · turn."""
    return {
        "embed": _turned(top["embed"], turn),
        "final_norm": np.ones_like(top["final_norm"]),
        "lm_head": _turned(top["lm_head"] * top["final_norm"], turn),
    }


def _turned(rows: Matrix, turn: Matrix) -> Matrix:
    """rows · turn. By JAX: its threads do not wait for each other where the cores are wanted elsewhere."""
    return np.asarray(jnp.asarray(rows) @ turn)


def _out_of(turn: Matrix, rows: Matrix) -> Matrix:
    return np.asarray(jnp.asarray(turn).T @ rows)


def down_block(config: ModelConfig) -> int:
    """The block of the transform of what enters `down`: 64, or 0 where it does not divide every `down`'s columns."""
    columns = [] if all(config.is_moe) else [config.intermediate]
    columns += [config.moe.intermediate] if config.moe is not None else []
    return 0 if any(count % HADAMARD_BLOCK for count in columns) else HADAMARD_BLOCK


def hadamard(x: NDArray[np.float32], block: int) -> Matrix:
    """The normalised Walsh-Hadamard transform of each `block` of the last axis: its own inverse. Block 0: nothing."""
    if not block:
        return x
    shaped = x.reshape(-1, block)
    width = 1
    while width < block:
        pairs = shaped.reshape(-1, block // (2 * width), 2, width)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        shaped = np.stack([first + second, first - second], axis=2).reshape(-1, block)
        width *= 2
    return (shaped * np.float32(block**-0.5)).reshape(x.shape)
