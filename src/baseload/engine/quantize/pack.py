"""Rounded matrices as the bytes that kernels read."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from baseload.engine.config import ModelConfig
from baseload.engine.native.packing import Packed, interleave_gate_up, pack_bf16, pack_w4, pack_w8, quantize_w8
from baseload.engine.native.weights_map import Source
from baseload.engine.packed import to_bfloat16
from baseload.engine.quantize import transforms
from baseload.engine.quantize.levels import Fitted, Kept, Rounded, Value
from baseload.engine.quantize.source import ModelSource

PLAIN = ("norm", "bias", "router")  # ends of names: never packed


def packed_tensors(config: ModelConfig, tensors: Iterable[tuple[str, Value]]) -> Iterator[tuple[str, Source]]:
    """Each tensor as it is written: matrices packed, the embedding in bfloat16, all others in float32."""
    for name, value in tensors:
        if isinstance(value, list):
            yield name, [_pack(config, name, one) for one in value]
        elif isinstance(value, Rounded | Kept):
            yield name, _pack(config, name, value)
        elif name == "embed":
            yield name, to_bfloat16(value)
        else:
            bias = value.astype(np.float32)
            yield name, interleave_gate_up(bias, len(bias) // 2) if name.endswith("gate_up_bias") else bias


def plain_tensors(source: ModelSource) -> Iterator[tuple[str, Source]]:
    """A model in bfloat16: nothing is rounded further, and nothing is turned."""
    top = source.top()
    yield "embed", to_bfloat16(top["embed"])
    for index in range(source.config.layers):
        for name, value in source.layer(index).items():
            full = f"layers.{index}.{name}"
            if name.endswith(PLAIN):
                yield from packed_tensors(source.config, [(full, value)])
            elif name.startswith("experts."):
                yield full, [pack_bf16(_interleaved(name, one).astype(np.float32)) for one in value]
            else:
                yield full, pack_bf16(_interleaved(name, value).astype(np.float32))
    yield "final_norm", top["final_norm"]
    yield "lm_head", pack_bf16(top["lm_head"])


def turned_tensors(source: ModelSource, seed: int) -> Iterator[tuple[str, Source]]:
    """A model turned, and each matrix rounded to the nearest 8 bits: quickly made, and near enough to write with."""
    turn = transforms.orthogonal(source.config.hidden, seed)
    top = transforms.rotate_top(source.top(), turn)
    block = transforms.down_block(source.config)
    yield "embed", to_bfloat16(top["embed"])
    for index in range(source.config.layers):
        for name, value in transforms.rotate_layer(source.layer(index), turn).items():
            full = f"layers.{index}.{name}"
            if name.endswith(PLAIN):
                yield from packed_tensors(source.config, [(full, value)])
                continue
            turned = transforms.hadamard(value, block) if name.endswith("down") else value
            each = turned if name.startswith("experts.") else turned[None]
            packed = [quantize_w8(_interleaved(name, one).astype(np.float32)) for one in each]
            yield full, packed if name.startswith("experts.") else packed[0]
    yield "final_norm", top["final_norm"]
    yield "lm_head", quantize_w8(top["lm_head"])


def _pack(config: ModelConfig, name: str, rounded: Fitted) -> Packed:
    if isinstance(rounded, Kept):
        return pack_bf16(_interleaved(name, rounded.weight).astype(np.float32))
    levels = rounded.levels
    arrays: list[NDArray[np.generic]] = [rounded.codes, levels.scale, levels.step, levels.offset]
    codes, scale, step, offset = (_interleaved(name, array) for array in arrays)
    if levels.scheme == "w8":
        return pack_w8(codes.astype(np.int8), scale.astype(np.float32))
    return pack_w4(
        codes.astype(np.uint8),
        step.astype(np.uint8),
        offset.astype(np.int16),
        scale.astype(np.float32),
        group=levels.group,
    )


def _interleaved(name: str, rows: NDArray[np.generic]) -> NDArray[np.generic]:
    return interleave_gate_up(rows, len(rows) // 2) if name.endswith("gate_up") else rows
