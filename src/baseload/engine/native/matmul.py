"""Products with packed matrices: calls of the native kernels from JAX, and their twins in plain JAX.

A `Weight` says where a packed matrix lies in one buffer of bytes; every function takes that buffer, so a compiled
program holds offsets, never a weight or an address. `isa` is what `library.isa_for` answered; with "xla" the twin is
lowered instead, which is the reference and what runs on GPU and TPU.

A row's bits never depend on its batch. Rows from `active` on hold anything (the twin: zeros): they are neither
computed nor cleared, so one program of many rows costs a batch of one nothing. A row that is not finite gives NaN and
leaves the others alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from baseload.engine.native import packing
from baseload.engine.native.features import XLA
from baseload.engine.native.packing import PANEL, Packed

ISAS = {"portable": 0, "avx2": 1, "avxvnni": 2, "avx512": 3, "amx": 4, "emulated": 5, "avx512vnni": 6}
_PLAIN, _RESIDUAL, _SWIGLU = 0, 1, 2
_TINY = 1e-30  # a row whose largest value is below this is taken as zero


@dataclass(frozen=True, slots=True)
class Weight:
    """A packed matrix W[n, k] at byte `offset` of the buffer; `bias` and `norm` are byte offsets too, −1: none.

    `bias` is float32 per packed row (n padded to 16), `norm` float32[k]. Of a SwiGLU's gate and up, `n` counts the
    interleaved rows (both halves padded to 16). With `experts` > 1, that many such matrices follow one another.
    """

    scheme: str
    n: int
    k: int
    offset: int
    group: int = 0
    bias: int = -1
    norm: int = -1
    experts: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of one matrix."""
        return packing.packed_bytes(self.scheme, self.n, self.k, self.group)

    def at_expert(self, index: int) -> "Weight":
        """One expert's matrix."""
        return replace(self, offset=self.offset + index * self.nbytes, experts=1)


def weight_of(packed: Packed, offset: int, *, bias: int = -1, norm: int = -1, experts: int = 1) -> Weight:
    """Where `packed` (or `experts` of its shape) lies."""
    return Weight(packed.scheme, packed.n, packed.k, offset, packed.group, bias, norm, experts)


def norm_matmul(
    x: jax.Array,
    blob: jax.Array,
    weight: Weight,
    *,
    isa: str,
    eps: float = -1.0,
    active: jax.Array | None = None,
    rows: jax.Array | None = None,
) -> jax.Array:
    """float32[rows, n] = rms_norm(x[·, k]) · Wᵀ (+ bias); eps < 0: no norm. `rows`, int32, picks rows of x."""
    return _call(x, blob, weight, isa, _PLAIN, weight.n, eps=eps, active=active, pick=rows)


def matmul_residual(
    x: jax.Array, residual: jax.Array, blob: jax.Array, weight: Weight, *, isa: str, active: jax.Array | None = None
) -> jax.Array:
    """residual[rows, n] + x[rows, k] · Wᵀ (+ bias)."""
    return _call(x, blob, weight, isa, _RESIDUAL, weight.n, residual=residual, active=active)


def norm_gate_up(
    x: jax.Array,
    blob: jax.Array,
    weight: Weight,
    *,
    isa: str,
    intermediate: int,
    eps: float,
    active: jax.Array | None = None,
) -> jax.Array:
    """float32[rows, intermediate] = silu(gate) · up of rms_norm(x); `weight` is packed with alternating panels."""
    return _call(x, blob, weight, isa, _SWIGLU, intermediate, eps=eps, active=active)


def expert_gate_up(
    x: jax.Array,
    pick: jax.Array,
    offsets: jax.Array,
    blob: jax.Array,
    weight: Weight,
    *,
    isa: str,
    intermediate: int,
    eps: float = -1.0,
) -> jax.Array:
    """float32[pairs, intermediate]: SwiGLU of row `pick[i]` of x by expert e, offsets[e] <= i < offsets[e + 1].

    `offsets` is int32[experts + 1]; pairs outside of them hold anything.
    """
    return _experts(x, pick, offsets, blob, weight, isa, _SWIGLU, intermediate, eps)


def expert_matmul(
    x: jax.Array, offsets: jax.Array, blob: jax.Array, weight: Weight, *, isa: str, pick: jax.Array | None = None
) -> jax.Array:
    """float32[pairs, n] = x[pairs, k] · W_eᵀ, pairs sorted by expert as `offsets` says."""
    return _experts(x, pick, offsets, blob, weight, isa, _PLAIN, weight.n, -1.0)


def unpack_rows(tokens: jax.Array, blob: jax.Array, weight: Weight, *, isa: str) -> jax.Array:
    """float32[tokens, k]: these rows of the matrix, dequantized (an embedding that is packed as the head is)."""
    if isa == XLA:
        return dequantize(blob, weight)[tokens]
    out = _floats_of(tokens.shape[0], weight.k)
    attributes = _shape(weight)
    return jax.ffi.ffi_call("bl_unpack_rows", out)(tokens.astype(jnp.int32), blob, **attributes)


def join(parts: list[Packed | np.ndarray], *, align: int = 64) -> tuple[np.ndarray, list[int]]:
    """One buffer uint8[…] of packed matrices and float32 arrays, each at a multiple of `align`; and their offsets."""
    arrays = [part.data if isinstance(part, Packed) else np.ascontiguousarray(part, np.float32) for part in parts]
    offsets, at = [], 0
    for array in arrays:
        offsets.append(at)
        at += -(-array.nbytes // align) * align
    blob = aligned_bytes(at)
    for array, offset in zip(arrays, offsets, strict=True):
        blob[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
    return blob, offsets


def aligned_bytes(size: int) -> np.ndarray:
    """uint8[size], zeros, beginning at a multiple of 64: what `device_put` can alias instead of copying."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def device_bytes(source: np.ndarray | Path) -> jax.Array:
    """The buffer as a JAX array without a copy where the platform allows; a path is mapped, read-only.

    The mapping's pages are shared by all processes that serve the same file. On an accelerator this copies.
    """
    array = np.memmap(source, np.uint8, mode="r") if isinstance(source, Path) else source
    placed: jax.Array = jax.device_put(array, may_alias=True)
    return placed


# ---- calls


def _floats_of(rows: int, columns: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, columns), jnp.float32)  # type: ignore[no-untyped-call]


def _shape(weight: Weight) -> dict[str, np.integer]:
    return {
        "scheme": np.int32(packing.SCHEMES.index(weight.scheme)),
        "n": np.int64(weight.n),
        "k": np.int64(weight.k),
        "group": np.int64(weight.group),
        "weight": np.int64(weight.offset),
    }


def _call(
    x: jax.Array,
    blob: jax.Array,
    weight: Weight,
    isa: str,
    epilogue: int,
    columns: int,
    *,
    eps: float = -1.0,
    active: jax.Array | None = None,
    pick: jax.Array | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    rows = x.shape[0] if pick is None else pick.shape[0]
    count = jnp.full((1,), rows, jnp.int32) if active is None else active.reshape(1).astype(jnp.int32)
    if isa == XLA:
        return _twin(x, blob, weight, epilogue, columns, eps, count, pick, residual)
    out = _floats_of(rows, columns)
    call = jax.ffi.ffi_call("bl_matmul", out)
    return call(
        x.astype(jnp.float32),
        count,
        jnp.zeros((0,), jnp.int32) if pick is None else pick.astype(jnp.int32),
        jnp.zeros((0,), jnp.float32) if residual is None else residual,
        blob,
        isa=np.int32(ISAS[isa]),
        **_shape(weight),
        norm=np.int64(weight.norm if eps >= 0 else -1),
        bias=np.int64(weight.bias),
        eps=np.float32(eps),
        epilogue=np.int32(epilogue),
    )


def _experts(
    x: jax.Array,
    pick: jax.Array | None,
    offsets: jax.Array,
    blob: jax.Array,
    weight: Weight,
    isa: str,
    epilogue: int,
    columns: int,
    eps: float,
) -> jax.Array:
    if isa == XLA:
        return _twin_experts(x, pick, offsets, blob, weight, epilogue, columns, eps)
    rows = x.shape[0] if pick is None else pick.shape[0]
    call = jax.ffi.ffi_call("bl_experts", _floats_of(rows, columns))
    return call(
        x.astype(jnp.float32),
        jnp.zeros((0,), jnp.int32) if pick is None else pick.astype(jnp.int32),
        offsets.astype(jnp.int32),
        blob,
        isa=np.int32(ISAS[isa]),
        **_shape(weight),
        norm=np.int64(weight.norm if eps >= 0 else -1),
        eps=np.float32(eps),
        epilogue=np.int32(epilogue),
    )


# ---- twins: the same in plain JAX, reading the same bytes


def quantize_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int8[rows, k] and float32[rows, 1] of x: nearest even of x · 127 / max|x|. NaN as the scale of a broken row."""
    top = jnp.max(jnp.abs(x), axis=1, keepdims=True, initial=0.0)
    finite = jnp.all(jnp.isfinite(x), axis=1, keepdims=True)
    some = finite & (top >= _TINY)
    inverse = jnp.where(some, 127.0 / jnp.where(some, top, 1.0), 0.0)
    codes = jnp.where(some, jnp.round(x * inverse), 0.0).astype(jnp.int8)
    return codes, jnp.where(finite, jnp.where(some, top / 127.0, 0.0), jnp.nan)


def integers(blob: jax.Array, weight: Weight) -> jax.Array:
    """The matrix as int8[n, k] before its rows' scales (w8 and w4)."""
    rows, depth = packing.padded(weight.n, weight.k, weight.group)
    codes = _part(blob, weight, "codes")
    if weight.scheme == "w8":
        stored = codes.reshape(rows // PANEL, depth // 4, PANEL, 4).transpose(0, 2, 1, 3).reshape(rows, depth)
    else:
        bytes_ = codes.reshape(rows // PANEL, depth // 8, PANEL, 4).transpose(0, 2, 1, 3)
        nibbles = jnp.stack([bytes_ & 15, bytes_ >> 4], axis=3).reshape(rows, depth)
        groups = _part(blob, weight, "groups").reshape(rows // PANEL, depth // weight.group, 2, PANEL)
        step, offset = (jnp.repeat(a, weight.group, axis=1) for a in _by_row(groups, rows))
        stored = nibbles * step + offset
    return lax.bitcast_convert_type(stored[: weight.n, : weight.k] ^ np.uint8(packing.OFFSET), jnp.int8)


def dequantize(blob: jax.Array, weight: Weight) -> jax.Array:
    """The matrix as float32[n, k]."""
    if weight.scheme == "bf16":
        return _bf16(blob, weight).astype(jnp.float32)
    return integers(blob, weight).astype(jnp.float32) * _floats(blob, weight)[:, None]


def _twin(
    x: jax.Array,
    blob: jax.Array,
    weight: Weight,
    epilogue: int,
    columns: int,
    eps: float,
    active: jax.Array,
    pick: jax.Array | None,
    residual: jax.Array | None,
) -> jax.Array:
    x = x.astype(jnp.float32) if pick is None else x[pick].astype(jnp.float32)
    out = _product(_normed(x, blob, weight, eps), blob, weight)
    if weight.bias >= 0:
        out = out + _float_part(blob, weight.bias, weight.n)
    if epilogue == _SWIGLU:
        out = _swiglu(out, columns)
    elif epilogue == _RESIDUAL:
        assert residual is not None
        out = residual + out
    return jnp.where(jnp.arange(out.shape[0])[:, None] < active, out, 0.0)


def _twin_experts(
    x: jax.Array,
    pick: jax.Array | None,
    offsets: jax.Array,
    blob: jax.Array,
    weight: Weight,
    epilogue: int,
    columns: int,
    eps: float,
) -> jax.Array:
    x = x.astype(jnp.float32) if pick is None else x[pick].astype(jnp.float32)
    given = _normed(x, blob, weight, eps)
    at = jnp.arange(x.shape[0])[:, None]
    out = jnp.zeros((x.shape[0], columns), jnp.float32)
    for expert in range(weight.experts):
        one = _product(given, blob, weight.at_expert(expert))
        one = _swiglu(one, columns) if epilogue == _SWIGLU else one
        out = jnp.where((at >= offsets[expert]) & (at < offsets[expert + 1]), one, out)
    return out


def _normed(x: jax.Array, blob: jax.Array, weight: Weight, eps: float) -> jax.Array:
    if eps < 0:
        return x
    normed = x * (1.0 / jnp.sqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True) + eps))
    return normed if weight.norm < 0 else normed * _float_part(blob, weight.norm, weight.k)


def _product(x: jax.Array, blob: jax.Array, weight: Weight) -> jax.Array:
    dims = (((1,), (1,)), ((), ()))
    if weight.scheme == "bf16":
        given = x.astype(jnp.bfloat16)
        return lax.dot_general(given, _bf16(blob, weight), dims, preferred_element_type=jnp.float32)
    codes, scale = quantize_rows(x)
    sums = lax.dot_general(codes, integers(blob, weight), dims, preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32) * scale * _floats(blob, weight)[None, :]


def _swiglu(interleaved: jax.Array, columns: int) -> jax.Array:
    panels = interleaved.reshape(interleaved.shape[0], -1, 2, PANEL)
    gate, up = (panels[:, :, half].reshape(interleaved.shape[0], -1)[:, :columns] for half in (0, 1))
    return jax.nn.silu(gate) * up


def _part(blob: jax.Array, weight: Weight, name: str) -> jax.Array:
    start, length = packing.parts(weight.scheme, weight.n, weight.k, weight.group)[name]
    return lax.slice(blob, (weight.offset + start,), (weight.offset + start + length,))


def _floats(blob: jax.Array, weight: Weight) -> jax.Array:
    return _to_float(_part(blob, weight, "scale"))[: weight.n]


def _float_part(blob: jax.Array, offset: int, count: int) -> jax.Array:
    return _to_float(lax.slice(blob, (offset,), (offset + 4 * count,)))


def _to_float(bytes_: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bytes_.reshape(-1, 4), jnp.float32)


def _bf16(blob: jax.Array, weight: Weight) -> jax.Array:
    rows, depth = packing.padded(weight.n, weight.k)
    values = lax.bitcast_convert_type(_part(blob, weight, "codes").reshape(-1, 2), jnp.bfloat16)
    panels = values.reshape(rows // PANEL, depth // 2, PANEL, 2).transpose(0, 2, 1, 3)
    return panels.reshape(rows, depth)[: weight.n, : weight.k]


def _by_row(groups: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    step, offset = (groups[:, :, half].transpose(0, 2, 1).reshape(rows, -1) for half in (0, 1))
    return step, offset
