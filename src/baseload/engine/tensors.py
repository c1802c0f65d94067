"""Safetensors files: eight bytes of header length, a JSON header, then raw tensors. Memory-mapped reading."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from baseload.domain.errors import BadWeights
from baseload.files import write_whole

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the format's own bound
_HINT = "Download the model again."


@dataclass(frozen=True, slots=True)
class TensorFile:
    """One mapped safetensors file. Its tensors are views; pages are read when touched."""

    path: Path
    data: np.ndarray  # uint8, the bytes after the header
    header: Mapping[str, Any]

    def read(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """The tensor as a view, or BadWeights where its type, shape or place in the file is wrong."""
        entry = self.header[name]
        where = f"{self.path}: tensor {name}"
        try:
            kind, found, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise BadWeights(f"{where} has a malformed header entry.", hint=_HINT) from None
        if kind not in DTYPES:
            raise BadWeights(
                f"{where} has type {kind}, which is not supported; supported are {', '.join(DTYPES)}.",
                hint="Use unquantized weights.",
            )
        if found != tuple(shape):
            raise BadWeights(
                f"{where} has shape {list(found)}, but config.json asks for {list(shape)}.",
                hint="Check that config.json belongs to these weights.",
            )
        if not 0 <= start <= end <= self.data.size or end - start != math.prod(found) * DTYPES[kind].itemsize:
            raise BadWeights(f"{where} lies outside the file or has the wrong size.", hint=_HINT)
        return self.data[start:end].view(DTYPES[kind]).reshape(found)


def open_tensors(path: Path) -> TensorFile:
    """Maps a file and checks its frame: header readable, and as many bytes after it as its tensors need."""
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise BadWeights(f"{path} does not exist.", hint=_HINT) from None
    except (OSError, ValueError) as error:
        raise BadWeights(f"{path} cannot be mapped: {error}.", hint=_HINT) from error
    length = int.from_bytes(raw[:8].tobytes(), "little") if raw.size >= 8 else _MAX_HEADER_BYTES
    if length >= _MAX_HEADER_BYTES or 8 + length > raw.size:
        raise BadWeights(f"{path} is truncated or not a safetensors file: its header is cut off.", hint=_HINT)
    try:
        header = json.loads(raw[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        needed = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise BadWeights(f"{path}: the header is corrupt.", hint=_HINT) from None
    data = np.asarray(raw[8 + length :])
    if needed != data.size:
        last = max(header, key=lambda name: header[name]["data_offsets"][1], default="")
        raise BadWeights(
            f"{path} is truncated or corrupt: tensor {last} ends at byte {needed} of the data,"
            f" but the file holds {data.size}.",
            hint=_HINT,
        )
    return TensorFile(path=path, data=data, header=header)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all; on return it is on disk."""
    header = _header({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, metadata)
    raw = (np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data for tensor in tensors.values())
    write_whole(path, itertools.chain(header, raw), is_durable=True)


def write_each(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any], read: Callable[[str], np.ndarray]
) -> None:
    """Like `write_tensors`, with one tensor in memory at a time: `read` gives each by name, in `dtype`."""
    header = _header({name: (dtype, shape) for name, shape in shapes.items()}, {"format": "pt"})

    def raw(name: str) -> memoryview:
        tensor = read(name)
        assert (tensor.dtype, tensor.shape) == (dtype, shapes[name])
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data

    write_whole(path, itertools.chain(header, map(raw, shapes)), is_durable=True)


def _header(tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]) -> list[bytes]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # data aligned to a cache line, so that it can be used in place
    return [len(text).to_bytes(8, "little"), text]
