"""The data directory: one process at a time, and words where it cannot be used."""

import errno
import os
from pathlib import Path

import pytest

from baseload.domain.errors import ControlError, JournalError
from baseload.live import datadir
from baseload.live.datadir import DataDir


def test_a_full_disk_is_said_and_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datadir.os, "pwrite", full)
        with pytest.raises(JournalError, match="cannot be used: No space left on device") as caught:
            DataDir(tmp_path / "data").open()
    assert "make room" in caught.value.hint
    again = DataDir(tmp_path / "data")
    again.open()
    with pytest.raises(ControlError, match=f"pid {os.getpid()}"):
        DataDir(tmp_path / "data").open()
    again.close()
