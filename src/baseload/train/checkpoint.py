"""Checkpoints that are whole or not there: written beside, flushed, renamed; verified by checksum when read.

    DIR/step_00000200/arrays.safetensors   every array by name
                      state.json           step and position in the data
                      manifest.json        size and SHA-256 of the other two

Why not orbax: docs/decisions/0006-training-and-checkpoints.md.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from baseload.domain.errors import CheckpointError
from baseload.files import flush_directory, write_new

Arrays = Mapping[str, NDArray[np.generic]]
_PREFIX = "step_"
_TEMPORARY = ".writing_"


class FileSum(Struct, frozen=True):
    """What one file of a checkpoint must be."""

    size: int
    sha256: str


class Checkpoint(Struct, frozen=True):
    """One checkpoint read back. `state` is whatever was saved with it, as JSON values."""

    step: int
    arrays: dict[str, NDArray[np.generic]]
    state: dict[str, object]


def write(directory: Path, *, step: int, arrays: Arrays, state: Mapping[str, object], keep: int) -> Path:
    """Write a checkpoint that survives a crash at any instant, then delete all but the newest `keep`."""
    final = directory / f"{_PREFIX}{step:08d}"
    partial = directory / f"{_TEMPORARY}{step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in sorted(directory.glob(f"{_TEMPORARY}*")):
            shutil.rmtree(leftover)
        partial.mkdir()
        contents = {
            "arrays.safetensors": save({name: np.asarray(a, order="C") for name, a in arrays.items()}),
            "state.json": msgspec.json.encode({"step": step, **state}),
        }
        sums = {name: FileSum(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
        for name, data in contents.items():
            write_new(partial / name, [data], is_flushed=True)
        write_new(partial / "manifest.json", [msgspec.json.encode(sums)], is_flushed=True)
        flush_directory(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        flush_directory(directory)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written under {directory}: {error}.",
            hint="Make room or choose another `checkpoint_dir`; the earlier checkpoints are intact.",
        ) from error
    for _, old in _found(directory)[keep:]:
        with contextlib.suppress(OSError):  # an undeletable old checkpoint costs room, not correctness
            shutil.rmtree(old)
    return final


def read_newest(directory: Path, *, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None; each one skipped is told to `say` with the reason."""
    for step, path in _found(directory):
        try:
            return _read(path, step)
        except CheckpointError as error:
            say(f"Skipping a damaged checkpoint: {error}")
    return None


def clear(directory: Path) -> None:
    """Delete every checkpoint here, for a fresh start. Other files are left alone."""
    for _, path in _found(directory):
        shutil.rmtree(path)
    for leftover in sorted(directory.glob(f"{_TEMPORARY}*")):
        shutil.rmtree(leftover)


def _read(path: Path, step: int) -> Checkpoint:
    try:
        sums = msgspec.json.decode((path / "manifest.json").read_bytes(), type=dict[str, FileSum])
        for name in ("arrays.safetensors", "state.json"):
            expected = sums.get(name)
            if expected is None:
                raise CheckpointError(f"{path / 'manifest.json'} does not list {name}.")
            _verify(path / name, expected)
        state = msgspec.json.decode((path / "state.json").read_bytes(), type=dict[str, object])
        if state.get("step") != step:
            raise CheckpointError(f"{path / 'state.json'} is of step {state.get('step')}, not {step}.")
        return Checkpoint(step=step, arrays=load_file(path / "arrays.safetensors"), state=state)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _verify(path: Path, expected: FileSum) -> None:
    size = path.stat().st_size
    if size != expected.size:
        raise CheckpointError(f"{path} has {size} bytes instead of {expected.size}.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
            raise CheckpointError(f"{path} does not have the checksum it was written with.")


def _found(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of the finished checkpoints, newest first."""
    names = [p for p in directory.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(((int(p.name.removeprefix(_PREFIX)), p) for p in names), reverse=True)
