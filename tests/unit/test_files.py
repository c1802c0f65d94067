"""Files are there whole or not at all, and never for more eyes than meant."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from baseload.files import write_new, write_whole


def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_whole(path, [b"old"])

    def chunks() -> Iterator[bytes]:
        yield b"ne"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, chunks())
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("note.json", b"old")]


def test_chunks_are_joined_and_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for is_durable in (False, True):
        write_whole(path, [b"a", memoryview(b"bc")], is_durable=is_durable, mode=0o600)
        assert path.read_bytes() == b"abc"
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_new_file_never_goes_into_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"somebody else's")
    with pytest.raises(FileExistsError):
        write_new(path, [b"secret"], is_flushed=False, mode=0o600)
    assert path.read_bytes() == b"somebody else's"
