"""A GGUF file made, once, into a folder that the engine reads.

A file of fewer than 16 bits becomes a packed directory of about its size (gguf/pack.py), where the kernels run; any
other a Hugging Face folder in bfloat16, the type the engine would compute in. Made in the cache, keyed by the file's
path, size and time; a folder half made is never seen.
"""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from baseload.engine import packed
from baseload.engine.gguf.pack import is_rounded, write_packed_folder
from baseload.engine.gguf.read import GgufFile, config_json, is_gguf, open_weights
from baseload.engine.gguf.vocabulary import tokenizer_config, tokenizer_of
from baseload.engine.native import library
from baseload.engine.native.features import XLA
from baseload.engine.native.packing import LAYOUT
from baseload.engine.tensors import write_each
from baseload.engine.weights import pieces
from baseload.files import write_whole

_VERSION = 2  # goes up when the same file should be unpacked anew


def model_folder(source: Path, cache_dir: Path, *, exact: bool = False) -> Path:
    """The folder to serve `source` from: itself, or what a GGUF file was made into. Raises ModelError.

    With `exact`, or where the kernels are not to be had, weights become bfloat16 whatever the file has.
    """
    if source.is_dir() or not is_gguf(source):
        return source
    about = source.stat() if source.exists() else None
    is_packed = not exact and _has_kernels() and is_rounded(source)
    key = (
        f"{_VERSION} {LAYOUT if is_packed else 0} {source.absolute()} {about and (about.st_size, about.st_mtime_ns)}"
    )
    folder = cache_dir / "gguf" / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = packed.partial_of(folder)
    try:
        if is_packed:
            _write_packed(source, partial)
        else:
            write_folder(source, partial)
        if not folder.is_dir():  # another process may have been faster
            packed.place(partial, folder, replace=False)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def check_file(path: Path) -> int:
    """The context length of a GGUF file after a look at its metadata and tokenizer; raises ModelError otherwise."""
    config, read = open_weights(path)
    file = GgufFile(path)
    tokenizer_of(file)
    read(next(iter(pieces(config))))
    return config.max_context


def write_folder(source: Path, folder: Path) -> None:
    """Writes config.json, the tokenizer and model.safetensors, one tensor in memory at a time."""
    config, read = open_weights(source)
    _write_words(source, folder)
    dtype = np.dtype(ml_dtypes.bfloat16)
    listed = {piece.name: piece for piece in pieces(config)}
    shapes = {name: piece.shape for name, piece in listed.items()}
    write_each(folder / "model.safetensors", shapes, dtype, lambda name: read(listed[name]).astype(dtype))


def _write_packed(source: Path, folder: Path) -> None:
    words = folder.with_name(f".{folder.name}.words")
    try:
        _write_words(source, words)
        write_packed_folder(source, folder, words)
    finally:
        shutil.rmtree(words, ignore_errors=True)


def _write_words(source: Path, folder: Path) -> None:
    """config.json and the tokenizer."""
    file = GgufFile(source)
    tokenizer = tokenizer_of(file)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(file))
    _write_json(folder / "config.json", config_json(file))


def _has_kernels() -> bool:
    return jax.default_backend() == "cpu" and library.isa_for("auto") != XLA


def _write_json(path: Path, value: object) -> None:
    write_whole(path, [json.dumps(value, indent=2, ensure_ascii=False).encode(), b"\n"], is_durable=True)
