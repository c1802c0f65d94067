"""A GGUF file as a packed directory: 4 bits stay 4 bits, more become 8 bits a weight, what does not fit stays 16.

Files of 4 bits have a float step (and offset) for each group of 32 columns; ours are small integers times a row's
scale (native/LAYOUT.md). The scale of each row is the one with which the integers
come nearest. Where a matrix would lose more than SHARE or LOSS_8 say it takes the next wider form.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from baseload.engine import packed
from baseload.engine.config import read_json
from baseload.engine.gguf.read import FOUR_BITS, GROUP, Floats, GgufFile, open_groups
from baseload.engine.quantize.levels import Fitted, Kept, Levels, Rounded, Value, bounds_of, choose_w8
from baseload.engine.quantize.pack import PLAIN, packed_tensors
from baseload.engine.quantize.source import ModelSource, open_source
from baseload.engine.quantize.transforms import Layer, down_block, hadamard

SHARE = 0.25  # of the file's own rounding error, a twelfth of the square of its steps, is what 4 bits may add to it
LOSS_8 = 2e-4  # of the square of a matrix is what 8 bits may lose: a half of what Q6_K loses of normal weights
_WIDE = ("F16", "BF16", "F32")
_LARGEST = np.linspace(8, 16, 65, dtype=np.float32)  # integer steps that a row's largest float step is tried as
_TINY = np.float32(1e-30)


def is_rounded(path: Path) -> bool:
    """Whether a file's matrices have fewer than 16 bits; of others nothing should be rounded further."""
    types = GgufFile(path).types()
    layers = [kind for name, kind in types.items() if name.startswith("blk.") and kind not in _WIDE]
    return len(layers) > 0


def write_packed_folder(path: Path, folder: Path, files: Path) -> None:
    """Writes `folder`, a packed directory of the GGUF file; config.json and the tokenizer are those in `files`.

    Memory: one layer in float32, or the embedding.
    """
    source, groups = open_source(path), open_groups(path)
    steps = replace(source, read=lambda piece: groups(piece, 0))
    offsets = replace(source, read=lambda piece: groups(piece, 1))
    kinds = sorted(set(GgufFile(path).types().values()))
    is_four = any(kind in FOUR_BITS for kind in kinds)
    block = 0 if is_four else down_block(source.config)  # the transform would mix weights of unlike groups
    tensors = packed_tensors(source.config, _values(source, steps, offsets, block))
    packed.write_packed(
        folder,
        read_json(files / "config.json"),
        tensors,
        scheme="w4a8" if is_four else "w8a8",
        group=GROUP if is_four else 0,
        down_hadamard=block,
        about={"gguf": {"file": path.name, "types": kinds}},
        files=[files / name for name in packed.COPIED if (files / name).is_file()],
    )


def fitted(weight: Floats, step: Floats, offset: Floats) -> Fitted:
    """The narrowest form of weight[N, K] that loses little enough; NaN are the steps of what is not of 4 bits."""
    if np.all(np.isfinite(step)):
        four = four_bits(weight, step, offset)
        if loss(weight, four.restore()) <= SHARE * own_loss(weight, step):
            return four
    levels = choose_w8(weight, np.ones(weight.shape[1], np.float32))
    eight = Rounded(levels, levels.nearest(weight))
    return eight if loss(weight, eight.restore()) <= LOSS_8 else Kept(weight)


def four_bits(weight: Floats, step: Floats, offset: Floats) -> Rounded:
    """weight[N, K] of groups step[N, G] · code + offset[N, G] with integer steps and offsets, nearest codes."""
    parts = weight.reshape(len(weight), -1, GROUP)
    codes = np.rint((parts - offset[..., None]) / np.maximum(step, _TINY)[..., None]).clip(0, 15)
    codes *= (step > 0)[..., None]
    least_code, most_code, mean = codes.min(axis=2), codes.max(axis=2), codes.mean(axis=2)
    scale = _row_scale(step, codes.var(axis=2), np.max(np.abs(weight), axis=1))
    whole = np.clip(np.rint(step / scale[:, None]), 1, 16)
    # The offset that keeps the group's mean, within what an 8-bit integer holds for every code that occurs.
    at = np.rint(parts.mean(axis=2) / scale[:, None] - whole * mean)
    at = np.clip(at, -128 - whole * least_code, 127 - whole * most_code).clip(-128, 127)
    steps, offsets = whole.astype(np.int16), at.astype(np.int16)
    levels = Levels(scale, steps, offsets, *bounds_of(steps, offsets), GROUP, "w4")
    return Rounded(levels, levels.nearest(weight))


def loss(weight: Floats, other: Floats) -> float:
    """The square of the difference over that of the weight."""
    return float(np.sum(np.square(weight - other)) / max(float(np.sum(np.square(weight))), 1e-30))


def own_loss(weight: Floats, step: Floats) -> float:
    """What rounding to steps[N, G] is expected to have cost the file's weight[N, K], as `loss` counts."""
    return float(GROUP * np.sum(np.square(step)) / 12 / max(float(np.sum(np.square(weight))), 1e-30))


def _row_scale(step: Floats, spread: Floats, reach: Floats) -> Floats:
    """float32[N]: with which integers are nearest to the steps, weighted by how much the codes of a group vary."""
    most = np.max(step, axis=1)
    best: Floats = np.maximum(most / 16, reach / 127)
    least = np.full(len(step), np.inf, np.float32)
    for count in _LARGEST:
        scale = np.maximum(np.maximum(most / count, reach / 127), _TINY)
        whole = np.clip(np.rint(step / scale[:, None]), 1, 16) * scale[:, None]
        error = np.sum(np.square(step - whole) * spread, axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    scale_of: Floats = np.maximum(best, _TINY).astype(np.float32)
    return scale_of


def _values(source: ModelSource, steps: ModelSource, offsets: ModelSource, block: int) -> Iterator[tuple[str, Value]]:
    top, top_steps, top_offsets = source.top(), steps.top(), offsets.top()
    yield "embed", top["embed"]
    for index in range(source.config.layers):
        parts: tuple[Layer, Layer, Layer] = (source.layer(index), steps.layer(index), offsets.layer(index))
        for name, weight in parts[0].items():
            full = f"layers.{index}.{name}"
            if block and name.endswith("down"):
                parts[0][name] = weight = hadamard(weight, block)
            if name.endswith(PLAIN):
                yield full, weight
            elif name.startswith("experts."):
                yield full, _experts(*(part[name] for part in parts))
            else:
                yield full, fitted(weight, parts[1][name], parts[2][name])
    yield "final_norm", top["final_norm"]
    yield "lm_head", fitted(top["lm_head"], top_steps["lm_head"], top_offsets["lm_head"])


def _experts(weights: Floats, steps: Floats, offsets: Floats) -> list[Fitted]:
    """All experts of a layer in the form that the least of them needs."""
    found = [fitted(*each) for each in zip(weights, steps, offsets, strict=True)]
    kinds = [each.levels.scheme if isinstance(each, Rounded) else "bf16" for each in found]
    if len(set(kinds)) == 1:
        return found
    if "bf16" in kinds:
        return [Kept(weight) for weight in weights]
    none = np.full_like(steps[0], np.nan)
    return [fitted(weight, none, none) for weight in weights]
