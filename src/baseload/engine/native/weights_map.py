"""A model's weights as one mapped run of bytes, and the index that says what lies where.

A packed directory holds `weights.packed` (the bytes) and `weights.json`:

    {"format": 1, "layout": 1, "bytes": n, "sha256": …, "tensors": {name: {"offset": …, "bytes": …, "kind": "matrix",
     "scheme": "w8", "group": 0, "shape": [n, k] or [experts, n, k]} or {…, "kind": "plain", "dtype": "float32",
     "shape": […]}}, "index_sha256": …, …}                further fields (measured fidelity) are left alone here

Names: `embed` (plain bfloat16 or float32 rows), `final_norm`, `lm_head` (always there, also where it is tied); per
layer `layers.3.` + `attn_norm`, `qkv`, `qkv_bias`, `q_norm`, `k_norm`, `out`, `out_bias`, `feed_norm`, `gate_up`,
`gate_up_bias`, `down`, `down_bias`; of a layer with experts `router` (plain float32) and `experts.gate_up`,
`experts.down`. What the family lacks is absent. Norms and biases are plain float32. `gate_up` and its bias are
interleaved (packing.interleave_gate_up); their shape says n as it lies, padding included.
"""

import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from baseload.domain.errors import BadWeights
from baseload.engine.native.packing import LAYOUT, Packed, packed_bytes
from baseload.files import write_whole

BLOB = "weights.packed"
INDEX = "weights.json"
FORMAT = 1
ALIGN = 4096  # of every tensor: what is used together is paged in together, and kernels may rely on 64
RUN = 2 << 20  # bytes written at once: a large page of the processor
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_HINT = "Make the directory again with `baseload quantize`."


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed matrix [n, k] at byte `offset`; with `count` > 0 so many of one size, one after the other."""

    offset: int
    scheme: str  # "w8" | "w4" | "bf16"
    n: int
    k: int
    group: int = 0
    count: int = 0

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return int(packed_bytes(self.scheme, self.n, self.k, self.group) * max(1, self.count))


@dataclass(frozen=True, slots=True)
class Plain:
    """An array at byte `offset`, as NumPy knows it."""

    offset: int
    dtype: str  # "float32" | "bfloat16"
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its length."""
        size: int = math.prod(self.shape) * _DTYPES[self.dtype].itemsize
        return size


Entry = Matrix | Plain
# What may be written: a packed matrix, experts of one size, or an array of float32 or bfloat16.
Source = Packed | Sequence[Packed] | np.ndarray


@dataclass(frozen=True, slots=True)
class WeightsMap:
    """The mapped bytes, uint8[n], and their index. Pages are read when they are touched."""

    blob: np.ndarray
    entries: Mapping[str, Entry]
    about: Mapping[str, Any]  # the whole of weights.json

    def matrix(self, name: str) -> Matrix:
        """The packed matrix of this name, or BadWeights."""
        found = self.entries.get(name)
        if not isinstance(found, Matrix):
            raise BadWeights(f"{INDEX} names no packed matrix {name}.", hint=_HINT)
        return found

    def plain(self, name: str) -> Plain:
        """The array of this name, or BadWeights."""
        found = self.entries.get(name)
        if not isinstance(found, Plain):
            raise BadWeights(f"{INDEX} names no array {name}.", hint=_HINT)
        return found

    def at(self, name: str) -> int:
        """The byte offset of an array that a family may lack: -1 where it does."""
        return self.plain(name).offset if name in self.entries else -1

    def array(self, name: str) -> np.ndarray:
        """The array itself, a view of the mapped bytes."""
        entry = self.plain(name)
        raw = self.blob[entry.offset : entry.offset + entry.bytes]
        array: np.ndarray = raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)
        return array


def open_map(directory: Path) -> WeightsMap:
    """Maps `weights.packed` of a directory and reads its index. Raises BadWeights, which names the file.

    The digest of the index is checked; that of the bytes is not (it would read them all): `check_map` does.
    """
    index, path = directory / INDEX, directory / BLOB
    try:
        about = json.loads(index.read_bytes())
        form, layout, size = about["format"], about["layout"], int(about["bytes"])
        if (form, layout) == (FORMAT, LAYOUT) and about["index_sha256"] != _index_digest(about):
            raise ValueError("its digest does not fit what it says")
        entries = {str(name): _entry(raw) for name, raw in about["tensors"].items()}
    except FileNotFoundError:
        raise BadWeights(f"{index} does not exist.", hint=_HINT) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{index} is damaged: {error}.", hint=_HINT) from error
    if (form, layout) != (FORMAT, LAYOUT):
        raise BadWeights(
            f"{index} is of format {form}, layout {layout}; this version reads {FORMAT}, {LAYOUT}.", hint=_HINT
        )
    blob = map_bytes(path)
    if blob.size != size:
        raise BadWeights(f"{path} holds {blob.size} bytes, but {INDEX} speaks of {size}.", hint=_HINT)
    for name, entry in entries.items():
        if entry.offset < 0 or entry.offset % 64 or entry.offset + entry.bytes > size:
            raise BadWeights(f"{index}: {name} lies outside of {BLOB}.", hint=_HINT)
    return WeightsMap(blob, entries, about)


def check_map(directory: Path) -> WeightsMap:
    """`open_map`, and then the digest of all bytes. Raises BadWeights."""
    weights = open_map(directory)
    digest = hashlib.sha256(weights.blob.data).hexdigest()
    if digest != weights.about["sha256"]:
        raise BadWeights(f"{directory / BLOB} is damaged: its digest is not what {INDEX} says.", hint=_HINT)
    return weights


def annotate(directory: Path, fields: Mapping[str, Any]) -> None:
    """Adds fields to the index, such as the measured fidelity."""
    whole = {**open_map(directory).about, **fields}
    whole["index_sha256"] = _index_digest(whole)
    write_whole(directory / INDEX, [json.dumps(whole, indent=1).encode(), b"\n"], is_durable=True)


def _index_digest(about: Mapping[str, Any]) -> str:
    """SHA-256 of the index without its digest, as JSON with sorted keys and no spaces."""
    rest = {name: value for name, value in about.items() if name != "index_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def map_bytes(path: Path) -> np.ndarray:
    """A file as read-only uint8[n], mapped and read ahead by the system."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise BadWeights(f"{path} cannot be mapped: {error}.", hint=_HINT) from error
    mapped.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(mapped, np.uint8)


def write_map(directory: Path, tensors: Iterable[tuple[str, Source]], about: Mapping[str, Any]) -> None:
    """Writes the bytes and then the index, each whole or not at all; tensors are taken one at a time."""
    directory.mkdir(parents=True, exist_ok=True)
    index: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()
    size = 0

    def pieces() -> Iterable[bytes | memoryview]:
        nonlocal size
        for name, source in tensors:
            chunks, entry = _parts(source)
            gap = bytes(-size % ALIGN)
            start = size + len(gap)
            whole: list[bytes | memoryview] = [gap, *chunks]
            for chunk in whole:
                digest.update(chunk)
                size += len(chunk)
                yield chunk
            index[name] = {"offset": start, "bytes": size - start, **entry}
        end = bytes(-size % ALIGN)  # kernels may read a little beyond the last array
        digest.update(end)
        size += len(end)
        yield end

    write_whole(directory / BLOB, _in_runs(pieces()), is_durable=True)
    whole = {**about, "format": FORMAT, "layout": LAYOUT, "bytes": size, "sha256": digest.hexdigest()}
    whole["tensors"] = index
    whole["index_sha256"] = _index_digest(whole)
    write_whole(directory / INDEX, [json.dumps(whole, indent=1).encode(), b"\n"], is_durable=True)


def _in_runs(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same bytes, RUN at a time, each good until the next is asked for.

    So the system can keep the file in large pages and map them as such: of 411 MB all but 5 (ext4, Linux 6.18). Of
    pieces that begin anywhere less than half was. From small pages one sequence decodes 9 to 15 % slower.
    """
    run = memoryview(bytearray(RUN))
    filled = 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            count = min(RUN - filled, len(rest))
            run[filled : filled + count] = rest[:count]
            filled, rest = filled + count, rest[count:]
            if filled == RUN:
                yield run
                filled = 0
    if filled:
        yield run[:filled]


def _parts(source: Source) -> tuple[list[memoryview], dict[str, Any]]:
    if isinstance(source, np.ndarray):
        dtype = next(name for name, known in _DTYPES.items() if known == source.dtype)
        flat = np.ascontiguousarray(source).reshape(-1).view(np.uint8)
        return [flat.data], {"kind": "plain", "dtype": dtype, "shape": list(source.shape)}
    many = [source] if isinstance(source, Packed) else list(source)
    first = many[0]
    assert all((one.scheme, one.n, one.k, one.group) == (first.scheme, first.n, first.k, first.group) for one in many)
    shape = [first.n, first.k] if isinstance(source, Packed) else [len(many), first.n, first.k]
    entry = {"kind": "matrix", "scheme": first.scheme, "group": first.group, "shape": shape}
    return [one.data.data for one in many], entry


def _entry(raw: Mapping[str, Any]) -> Entry:
    offset, shape = int(raw["offset"]), tuple(int(size) for size in raw["shape"])
    entry: Entry
    if raw["kind"] == "plain":
        if raw["dtype"] not in _DTYPES:
            raise ValueError(f"dtype {raw['dtype']}")
        entry = Plain(offset, str(raw["dtype"]), shape)
    else:
        *count, n, k = shape
        entry = Matrix(offset, str(raw["scheme"]), n, k, int(raw["group"]), count[0] if count else 0)
    if min(shape, default=1) < 1 or entry.bytes != raw["bytes"]:
        raise ValueError(f"{shape} does not take {raw['bytes']} bytes")
    return entry
