"""Checkpoints: whole or not there."""

from pathlib import Path

import numpy as np
import pytest

from baseload.domain.errors import CheckpointError
from baseload.train import checkpoint


def _write(directory: Path, step: int, keep: int = 3) -> Path:
    arrays = {"w": np.full((2, 3), step, np.float32), "n": np.array(step, np.int32)}
    return checkpoint.write(directory, step=step, arrays=arrays, state={"draws": step}, keep=keep)


def test_the_newest_is_read_back_and_the_oldest_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        _write(tmp_path, step, keep=2)
    newest = checkpoint.read_newest(tmp_path, say=pytest.fail)
    assert newest is not None
    assert (newest.step, newest.state["draws"]) == (30, 30)
    np.testing.assert_array_equal(newest.arrays["w"], np.full((2, 3), 30, np.float32))
    assert newest.arrays["n"].shape == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000004", "step_00000030"]


def _flip_a_bit(path: Path) -> None:
    data = bytearray((path / "arrays.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "arrays.safetensors").write_bytes(data)


def _truncate(path: Path) -> None:
    (path / "arrays.safetensors").write_bytes((path / "arrays.safetensors").read_bytes()[:-4])


def _change_state(path: Path) -> None:
    (path / "state.json").write_bytes((path / "state.json").read_bytes().replace(b'"draws":2', b'"draws":3'))


def _lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def _lose_arrays(path: Path) -> None:
    (path / "arrays.safetensors").unlink()


@pytest.mark.parametrize("damage", [_flip_a_bit, _truncate, _change_state, _lose_manifest, _lose_arrays])
def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    _write(tmp_path, 1)
    damage(_write(tmp_path, 2))
    said: list[str] = []
    found = checkpoint.read_newest(tmp_path, say=said.append)
    assert found is not None
    assert found.step == 1
    assert len(said) == 1
    assert "Skipping a damaged checkpoint" in said[0]
    assert "step_00000002" in said[0]


def test_a_half_written_checkpoint_is_not_seen_and_is_cleared_away(tmp_path: Path) -> None:
    partial = tmp_path / ".writing_00000009"
    partial.mkdir()
    (partial / "state.json").write_bytes(b"{")
    assert checkpoint.read_newest(tmp_path, say=pytest.fail) is None
    _write(tmp_path, 10)
    assert not partial.exists()


def test_what_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="earlier checkpoints are intact"):
        _write(tmp_path / "file", 1)


def test_clear_leaves_other_files_alone(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
