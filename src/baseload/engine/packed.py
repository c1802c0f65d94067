"""Packed directories: what `baseload quantize` writes, and what the engine maps.

config.json       the model's own, with `quantization_config`: quant_method "baseload", scheme, group, layout
weights.packed    all weights in one run of bytes, as native/LAYOUT.md has them
weights.json      where each lies, digests, and the measured fidelity (native/weights_map.py)
tokenizer.json …  as the original has them
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from baseload.domain.errors import BadWeights, ModelError
from baseload.engine.config import ModelConfig, read_json
from baseload.engine.native.packing import (
    GROUPS,
    LAYOUT,
    PANEL,
    SCHEMES,
    Packed,
    dequantize,
    packed_bytes,
    split_gate_up,
)
from baseload.engine.native.weights_map import INDEX, Matrix, Source, WeightsMap, check_map, open_map, write_map
from baseload.engine.registry import read_config
from baseload.files import flush_directory, write_whole

METHOD = "baseload"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
)
_HINT = "Make the directory again with `baseload quantize`."
_PARTIAL = ".partial"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PackedModel:
    """An open packed directory; its weights are mapped, not read."""

    path: Path
    config: ModelConfig
    weights: WeightsMap
    scheme: str  # "w8a8" | "w4a8" | "bf16"
    group: int  # columns that share a step in w4a8, else 0
    down_hadamard: int  # block of the transform of what enters `down`; 0: none

    def layer(self, index: int) -> dict[str, Floats]:
        """Layer `index` in float32, as engine/quantize/source.py names it: gate and up one after the other."""
        prefix = f"layers.{index}."
        names = [name for name in self.weights.entries if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.restored(name) for name in names}

    def top(self) -> dict[str, Floats]:
        """embed, final_norm and lm_head in float32."""
        return {name: self.restored(name) for name in ("embed", "final_norm", "lm_head")}

    def restored(self, name: str) -> Floats:
        """One tensor in float32."""
        entry = self.weights.entries[name]
        if not isinstance(entry, Matrix):
            array = self.weights.array(name).astype(np.float32)
            return self._in_order(name, array)
        size = packed_bytes(entry.scheme, entry.n, entry.k, entry.group)
        whole = []
        for at in range(entry.offset, entry.offset + entry.bytes, size):
            packed = Packed(entry.scheme, entry.n, entry.k, entry.group, self.weights.blob[at : at + size])
            whole.append(self._in_order(name, dequantize(packed)))
        return np.stack(whole) if entry.count else whole[0]

    def _in_order(self, name: str, array: Floats) -> Floats:
        """Gate and up lie in alternating panels."""
        if "gate_up" not in name:
            return array
        moe = self.config.moe
        inner = moe.intermediate if ".experts." in name and moe is not None else self.config.intermediate
        split: Floats = split_gate_up(array, inner).astype(np.float32)
        return split


def is_packed(directory: Path) -> bool:
    """Whether this is a packed directory; not whether it is a good one."""
    return (directory / INDEX).is_file()


def open_packed(directory: Path, *, whole: bool = False) -> PackedModel:
    """Maps a packed directory after checking everything but the digest of the bytes; with `whole` that too.

    Raises ModelError, UnsupportedArchitecture or BadWeights, each naming the file.
    """
    config = read_config(directory)
    path = directory / "config.json"
    stated = read_json(path).get("quantization_config")
    if not isinstance(stated, Mapping) or stated.get("quant_method") != METHOD:
        raise ModelError(f"{path} does not say that it was quantized by Baseload.", hint=_HINT)
    weights = check_map(directory) if whole else open_map(directory)
    scheme, group, block = (stated.get(name) for name in ("scheme", "group", "down_hadamard"))
    about = {"scheme": scheme, "group": group, "down_hadamard": block}
    if stated.get("layout") != LAYOUT or {name: weights.about.get(name) for name in about} != about:
        raise BadWeights(f"{path} and {directory / INDEX} are not of the same model.", hint=_HINT)
    _check_shapes(directory, config, weights)
    assert isinstance(scheme, str) and isinstance(group, int) and isinstance(block, int)  # noqa: PT018
    return PackedModel(directory, config, weights, scheme, group, block)


def write_packed(
    out: Path,
    config_json: Mapping[str, Any],
    tensors: Iterable[tuple[str, Source]],
    *,
    scheme: str,
    group: int,
    down_hadamard: int,
    kept: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
) -> None:
    """Writes a packed directory at `out`, which must not be there; `files` are copied into it.

    `kept` names the matrices that stay in bfloat16 though the scheme is another: config.json says so.

    Nothing of it is to be seen under its name until all of it is on disk.
    """
    said = {"scheme": scheme, "group": group, "down_hadamard": down_hadamard}
    method = {"quant_method": METHOD, **said, "layout": LAYOUT, **({"kept": list(kept)} if kept else {})}
    out.mkdir(parents=True)
    write_map(out, tensors, {**(about or {}), **said})
    text = json.dumps({**config_json, "quantization_config": method}, indent=2) + "\n"
    write_whole(out / "config.json", [text.encode()], is_durable=True)
    for file in files:
        write_whole(out / file.name, [file.read_bytes()], is_durable=True)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a packed directory of this model must hold; of gate and up, rows as they lie."""
    c, H, D = config, config.hidden, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (c.vocab_size, H),
        "final_norm": (H,),
        "lm_head": (c.vocab_size, H),
    }
    for index in range(c.layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (H,),
            "qkv": (c.qkv_rows, H),
            "out": (H, c.heads * D),
            "feed_norm": (H,),
        }
        if c.qkv_bias:
            layer["qkv_bias"] = (c.qkv_rows,)
        if c.out_bias:
            layer["out_bias"] = (H,)
        if c.qk_norm:
            layer |= {"q_norm": (D,), "k_norm": (D,)}
        if c.is_moe[index] and c.moe is not None:
            E, F = c.moe.experts, c.moe.intermediate
            layer |= {"router": (E, H), "experts.gate_up": (E, 2 * _up(F), H), "experts.down": (E, H, F)}
        else:
            layer |= {"gate_up": (2 * _up(c.intermediate), H), "down": (H, c.intermediate)}
            if c.mlp_bias:
                layer |= {"gate_up_bias": (2 * _up(c.intermediate),), "down_bias": (H,)}
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def _check_shapes(directory: Path, config: ModelConfig, weights: WeightsMap) -> None:
    expected = expected_shapes(config)
    for name, shape in expected.items():
        entry = weights.entries.get(name)
        found: tuple[int, ...] = ()
        if isinstance(entry, Matrix):
            found = (*((entry.count,) if entry.count else ()), entry.n, entry.k)
            if entry.scheme not in SCHEMES or (entry.scheme == "w4") != (entry.group in GROUPS):
                raise BadWeights(f"{directory / INDEX}: {name} has an unknown scheme {entry.scheme}.", hint=_HINT)
        elif entry is not None:
            found = entry.shape
        if found != shape:
            raise BadWeights(
                f"{directory / INDEX}: {name} is {list(found) or 'missing'}, but config.json asks for {list(shape)}.",
                hint=_HINT,
            )


def place(partial: Path, out: Path, *, replace: bool) -> None:
    """Gives a finished directory its name. With `replace` an old one is moved away first, and then removed."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if replace and out.exists():
        out.rename(old)
    partial.rename(out)
    flush_directory(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def partial_of(out: Path) -> Path:
    """Where a directory is written before it gets its name; what a killed process left there is removed."""
    for left in out.parent.glob(f".{out.name}.*{_PARTIAL}"):
        number = left.name.removesuffix(_PARTIAL).rpartition(".")[2]
        if not number.isdigit() or int(number) == os.getpid() or not Path(f"/proc/{number}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return out.with_name(f".{out.name}.{os.getpid()}{_PARTIAL}")


def to_bfloat16(array: Floats) -> NDArray[np.generic]:
    """For what is stored plain in 16 bits."""
    return array.astype(ml_dtypes.bfloat16)


def _up(rows: int) -> int:
    return -(-rows // PANEL) * PANEL
