"""Packed matrices: the reference, in NumPy, of the layout in native/LAYOUT.md.

`pack_*` make what the kernels read, `unpack_*` are their inverses, `dequantize` gives the float32 matrix.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Codes = NDArray[np.int8]

LAYOUT = 1  # goes up when bytes mean something else
PANEL = 16  # rows that lie together
DEPTH = 64  # K is padded to a multiple of this: one AMX tile's depth in bytes
ALIGN = 64
OFFSET = 128  # added to signed codes
MAX_STEP = 17  # 15 · 17 = 255: products of two nibbles in one 16-bit word do not meet
MAX_DEPTH = 65_536  # sums stay exact in int32
SCHEMES = ("w8", "w4", "bf16")
GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Packed:
    """One matrix as the kernels read it: `data` is uint8[nbytes], a multiple of 64 long.

    `n` and `k` are the logical sizes; `group` is 0 unless the scheme is "w4".
    """

    scheme: str
    n: int
    k: int
    group: int
    data: Bytes

    def part(self, name: str) -> Bytes:
        """The bytes of one part: "codes", "groups" or "scale"."""
        start, length = parts(self.scheme, self.n, self.k, self.group)[name]
        return self.data[start : start + length]


def padded(n: int, k: int, group: int = 0) -> tuple[int, int]:
    """N and K as they lie in memory."""
    return _up(n, PANEL), _up(k, max(DEPTH, group))


def parts(scheme: str, n: int, k: int, group: int = 0) -> dict[str, tuple[int, int]]:
    """Start and length in bytes (without padding) of each part of one packed matrix, in order."""
    rows, depth = padded(n, k, group)
    if scheme == "bf16":
        sizes = {"codes": rows * depth * 2}
    elif scheme == "w8":
        sizes = {"codes": rows * depth, "scale": rows * 4}
    elif scheme == "w4" and group in GROUPS:
        sizes = {"codes": rows * depth // 2, "groups": rows * depth // group * 2, "scale": rows * 4}
    else:
        raise ValueError(f"no layout for scheme {scheme!r} with group {group}: schemes {SCHEMES}, groups {GROUPS}")
    found, at = {}, 0
    for name, size in sizes.items():
        found[name] = (at, size)
        at += _up(size, ALIGN)
    return found


def packed_bytes(scheme: str, n: int, k: int, group: int = 0) -> int:
    """Bytes of one packed matrix."""
    start, length = list(parts(scheme, n, k, group).values())[-1]
    return start + _up(length, ALIGN)


def pack_w8(codes: Codes, scale: Floats) -> Packed:
    """Of int8[N, K] in −127..127 and float32[N] per row: W = scale · codes."""
    n, k = codes.shape
    assert codes.dtype == np.int8
    assert scale.shape == (n,)
    assert codes.size == 0 or codes.min() >= -127
    return _assemble("w8", n, k, 0, {"codes": _panels(_offset(codes, 0), 4), "scale": _pad_rows(scale, n)})


def pack_w4(codes: Bytes, step: Bytes, offset: NDArray[np.int16], scale: Floats, *, group: int = 0) -> Packed:
    """Of codes uint8[N, K] in 0..15, step uint8[N, groups] in 0..17, offset int[N, groups] and scale float32[N].

    W[n, k] = scale[n] · (step[n, g] · codes[n, k] + offset[n, g]); each such integer must lie in −128..127. Without
    `group`, it is the smallest of 32, 64, 128 with which that many groups cover K. Raises ValueError where they do
    not fit.
    """
    n, k = codes.shape
    group = group or next((size for size in GROUPS if -(-k // size) == step.shape[1]), 0)
    if not group or step.shape != (n, -(-k // group)) or offset.shape != step.shape or scale.shape != (n,):
        raise ValueError(
            f"codes {codes.shape}, step {step.shape}, offset {offset.shape}, scale {scale.shape}: no fit"
        )
    weights = w4_integers(codes, step, offset, group)
    if codes.max(initial=0) > 15 or step.max(initial=0) > MAX_STEP:
        raise ValueError(f"codes must be 0..15 and steps 0..{MAX_STEP}")
    if weights.size and (weights.min() < -128 or weights.max() > 127):
        raise ValueError("step · code + offset must lie in −128..127")
    rows, depth = padded(n, k, group)
    full = np.zeros((rows, depth), np.uint8)
    full[:n, :k] = codes
    pairs = full.reshape(rows // PANEL, PANEL, depth // 8, 2, 4)
    nibbles = (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).transpose(0, 2, 1, 3)
    both = np.zeros((2, rows, depth // group), np.uint8)
    both[0, :n, : step.shape[1]] = step
    both[1] = OFFSET
    both[1, :n, : step.shape[1]] = (offset.astype(np.int16) + OFFSET).astype(np.uint8)
    groups = both.reshape(2, rows // PANEL, PANEL, depth // group).transpose(1, 3, 0, 2)
    return _assemble("w4", n, k, group, {"codes": nibbles, "groups": groups, "scale": _pad_rows(scale, n)})


def w4_integers(codes: Bytes, step: Bytes, offset: NDArray[np.int16], group: int) -> NDArray[np.int16]:
    """step · code + offset as int16[N, K]: what is multiplied by the row's scale."""
    k = codes.shape[1]
    wide = [np.repeat(a.astype(np.int16), group, axis=1)[:, :k] for a in (step, offset)]
    return wide[0] * codes.astype(np.int16) + wide[1]


def pack_bf16(weight: NDArray[np.floating]) -> Packed:
    """Of a matrix float[N, K], rounded to bfloat16."""
    n, k = weight.shape
    rows, depth = padded(n, k)
    full = np.zeros((rows, depth), ml_dtypes.bfloat16)
    full[:n, :k] = weight.astype(ml_dtypes.bfloat16)
    return _assemble("bf16", n, k, 0, {"codes": _panels(full.view(np.uint16), 2)})


def quantize_w8(weight: Floats) -> Packed:
    """Nearest codes with scale = max|row| / 127 of float[N, K]."""
    weight = np.asarray(weight, np.float32)
    scale = np.max(np.abs(weight), axis=1, initial=0.0) / np.float32(127)
    codes = np.rint(weight / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    return pack_w8(codes, scale.astype(np.float32))


def quantize_w4(weight: Floats, group: int = 32) -> Packed:
    """Nearest codes between each group's minimum and maximum; the row's largest weight is 120 steps of its scale.

    The plain quantization that tests and benches use; `baseload quantize` looks for better codes.
    """
    weight = np.asarray(weight, np.float32)
    n, k = weight.shape
    scale = np.max(np.abs(weight), axis=1, initial=0.0) / np.float32(120)
    scaled = weight / np.where(scale > 0, scale, 1)[:, None]
    count = -(-k // group)
    padded_k = np.pad(scaled, ((0, 0), (0, count * group - k)), mode="edge" if k else "constant")
    grouped = padded_k.reshape(n, count, group)
    low, high = grouped.min(axis=2, initial=255), grouped.max(axis=2, initial=-255)
    step = np.clip(np.ceil((high - low) / 15), 1, MAX_STEP)
    offset = np.clip(np.rint((low + high) / 2 - 7.5 * step), -128, 127)
    most = np.minimum(15, np.floor((127 - offset) / step))
    codes = np.clip(np.rint((grouped - offset[..., None]) / step[..., None]), 0, most[..., None])
    flat = codes.reshape(n, -1)[:, :k].astype(np.uint8)
    return pack_w4(flat, step.astype(np.uint8), offset.astype(np.int16), scale.astype(np.float32), group=group)


def unpack_w8(packed: Packed) -> tuple[Codes, Floats]:
    """int8[N, K] and float32[N]: the inverse of `pack_w8`."""
    rows, depth = padded(packed.n, packed.k)
    panels = packed.part("codes").reshape(rows // PANEL, depth // 4, PANEL, 4)
    stored = panels.transpose(0, 2, 1, 3).reshape(rows, depth)[: packed.n, : packed.k]
    return (stored ^ OFFSET).view(np.int8), _scale(packed)


def unpack_w4(packed: Packed) -> tuple[Bytes, Bytes, NDArray[np.int16], Floats]:
    """codes, step, offset and scale: the inverse of `pack_w4`."""
    n, k, group = packed.n, packed.k, packed.group
    rows, depth = padded(n, k, group)
    bytes_ = packed.part("codes").reshape(rows // PANEL, depth // 8, PANEL, 4).transpose(0, 2, 1, 3)
    codes = np.stack([bytes_ & 15, bytes_ >> 4], axis=3).reshape(rows, depth)[:n, :k]
    groups = packed.part("groups").reshape(rows // PANEL, depth // group, 2, PANEL).transpose(2, 0, 3, 1)
    step, offset = groups.reshape(2, rows, depth // group)[:, :n, : -(-k // group)]
    return codes, step, offset.astype(np.int16) - OFFSET, _scale(packed)


def unpack_bf16(packed: Packed) -> NDArray[np.floating]:
    """bfloat16[N, K]."""
    rows, depth = padded(packed.n, packed.k)
    panels = packed.part("codes").view(np.uint16).reshape(rows // PANEL, depth // 2, PANEL, 2)
    whole = np.ascontiguousarray(panels.transpose(0, 2, 1, 3).reshape(rows, depth)[: packed.n, : packed.k])
    return whole.view(ml_dtypes.bfloat16)


def dequantize(packed: Packed) -> Floats:
    """The float32[N, K] matrix that the packed bytes stand for."""
    if packed.scheme == "bf16":
        return unpack_bf16(packed).astype(np.float32)
    if packed.scheme == "w8":
        codes, scale = unpack_w8(packed)
        return codes.astype(np.float32) * scale[:, None]
    four, step, offset, scale = unpack_w4(packed)
    return w4_integers(four, step, offset, packed.group).astype(np.float32) * scale[:, None]


def interleave_gate_up(stacked: NDArray[np.generic], intermediate: int) -> NDArray[np.generic]:
    """Rows of [gate; up] (first axis 2 · intermediate) in the order of alternating panels, zeros as padding.

    For matrices and for anything else per row (codes, steps, scales, biases).
    """
    assert stacked.shape[0] == 2 * intermediate
    rows = _up(intermediate, PANEL)
    halves = np.zeros((2, rows, *stacked.shape[1:]), stacked.dtype)
    halves[0, :intermediate], halves[1, :intermediate] = stacked[:intermediate], stacked[intermediate:]
    panels = halves.reshape(2, rows // PANEL, PANEL, *stacked.shape[1:])
    return panels.swapaxes(0, 1).reshape(2 * rows, *stacked.shape[1:])


def split_gate_up(interleaved: NDArray[np.generic], intermediate: int) -> NDArray[np.generic]:
    """The inverse of `interleave_gate_up`: [gate; up] without padding."""
    rest = interleaved.shape[1:]
    panels = interleaved.reshape(-1, 2, PANEL, *rest).swapaxes(0, 1).reshape(2, -1, *rest)
    return np.concatenate([panels[0, :intermediate], panels[1, :intermediate]])


def _assemble(scheme: str, n: int, k: int, group: int, arrays: dict[str, NDArray[np.generic]]) -> Packed:
    if padded(n, k, group)[1] > MAX_DEPTH:
        raise ValueError(f"K = {k} is more than {MAX_DEPTH}: int32 sums would not be exact")
    data = np.zeros(packed_bytes(scheme, n, k, group), np.uint8)
    for name, (start, length) in parts(scheme, n, k, group).items():
        data[start : start + length] = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
    return Packed(scheme, n, k, group, data)


def _offset(codes: Codes, group: int) -> Bytes:
    rows, depth = padded(codes.shape[0], codes.shape[1], group)
    full = np.full((rows, depth), OFFSET, np.uint8)
    full[: codes.shape[0], : codes.shape[1]] = codes.view(np.uint8) ^ OFFSET
    return full


def _panels(full: NDArray[np.generic], together: int) -> NDArray[np.generic]:
    rows, depth = full.shape
    return full.reshape(rows // PANEL, PANEL, depth // together, together).transpose(0, 2, 1, 3)


def _pad_rows(scale: Floats, n: int) -> Floats:
    return np.pad(scale.astype(np.float32), (0, _up(n, PANEL) - n))


def _scale(packed: Packed) -> Floats:
    return packed.part("scale").view(np.float32)[: packed.n]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
