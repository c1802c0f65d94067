"""A folder that cannot be used is said before anything rests on it, with what to do; the trying leaves nothing."""

import errno
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baseload.cli import folders
from baseload.cli.folders import why_unwritable
from baseload.cli.main import app


def test_what_can_be_made_or_written_is_well_and_stays_as_it_is(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "a" / "b" / "c") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").write_text("x")
    assert why_unwritable(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "data" / "deeper"):
        why, hint = why_unwritable(folder) or ("", "")
        assert f"{tmp_path / 'file'} is a file" in why
        assert hint == f"Move {tmp_path / 'file'} away"
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is a file" in (why_unwritable(tmp_path / "link" / "data") or ("", ""))[0]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, where nobody can make a folder")
def test_a_parent_that_takes_no_folder_is_named() -> None:
    why, hint = why_unwritable(Path("/proc/baseload/data")) or ("", "")
    assert why.startswith("/proc/baseload/data cannot be made in /proc: ")
    assert hint


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "Mount it writable"),
        (errno.EACCES, "Change its owner"),
        (errno.EIO, "See to its file system"),
    ],
)
def test_each_reason_has_its_advice(number: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folders.os, "write", refuse)
    found = why_unwritable(tmp_path)
    assert found is not None
    assert found[0] == f"{tmp_path} cannot be written: {os.strerror(number)}"
    assert found[1].startswith(hint)
    assert list(tmp_path.iterdir()) == []


def test_a_file_inside_that_is_somebody_elses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "baseload.db").write_text("")
    monkeypatch.setattr(folders.os, "access", lambda path, mode: Path(path).name != "baseload.db")
    assert (why_unwritable(tmp_path) or ("", ""))[0] == f"{tmp_path / 'baseload.db'} cannot be read and written"


def test_doctor_ends_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for setting in ("data_dir", "cache_dir"):
        settings = tmp_path / f"{setting}.toml"
        settings.write_text(f'port = 0\n{setting} = "{tmp_path / "file" / "x"}"\n')
        flags = ["--settings", str(settings)] + (["--data-dir", str(tmp_path)] if setting == "cache_dir" else [])
        shown = CliRunner().invoke(app, ["doctor", *flags, "--json"])
        assert shown.exit_code == 1
        (bad,) = [one for one in json.loads(shown.stdout) if one["level"] == "bad"]
        assert bad["name"] == {"data_dir": "data folder", "cache_dir": "program cache"}[setting]
        assert "is a file" in bad["found"]
        assert {"data_dir": "--data-dir", "cache_dir": "cache_dir"}[setting] in bad["advice"]
