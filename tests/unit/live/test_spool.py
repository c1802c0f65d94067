"""The spool: what was settled is read back, whatever happened to the disk in between."""

import resource
from contextlib import contextmanager

import pytest

from baseload.live.spool import Spool, read_spool, segments


def fill(spool: Spool, first: int, last: int) -> None:
    for seq in range(first, last + 1):
        spool.append(seq, seq * 10, f"event {seq}".encode())


def seqs(folder, after_seq: int = 0) -> list[int]:
    return [one.seq for one in read_spool(folder, after_seq=after_seq)[0]]


@contextmanager
def file_size_limit(size: int):
    """No file may grow beyond this: the kernel then takes part of a write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_settled_events_are_read_back_and_unsettled_are_not(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, 1, 3)
    spool.settle()
    fill(spool, 4, 4)
    assert read_spool(tmp_path, after_seq=0)[0] == [(seq, seq * 10, f"event {seq}".encode()) for seq in (1, 2, 3)]
    spool.close()
    assert seqs(tmp_path, after_seq=2) == [3, 4]


def test_segments_rotate_and_go_once_the_journal_has_them(tmp_path):
    spool = Spool(tmp_path, segment_bytes=200)
    for seq in range(1, 41):
        fill(spool, seq, seq)
        spool.settle()
    before = len(segments(tmp_path))
    assert before > 3
    spool.forget(20)
    assert 1 < len(segments(tmp_path)) < before
    assert seqs(tmp_path, after_seq=20) == list(range(21, 41))
    spool.close()
    spool.forget(40)
    assert segments(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 10, 24, 30])
def test_a_torn_last_frame_is_dropped(tmp_path, cut):
    spool = Spool(tmp_path)
    fill(spool, 1, 5)
    spool.close()
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert seqs(tmp_path) == [1, 2, 3, 4]


def test_an_empty_or_torn_first_write_is_passed_over(tmp_path):
    (tmp_path / f"{1:020d}.spool").write_bytes(b"BLS")
    assert read_spool(tmp_path, after_seq=0) == ([], "")


def test_a_gap_ends_reading_and_is_told(tmp_path):
    for first in (1, 5):
        spool = Spool(tmp_path)
        fill(spool, first, first + 1)
        spool.close()
    frames, warning = read_spool(tmp_path, after_seq=0)
    assert [one.seq for one in frames] == [1, 2]
    assert "3 to 4" in warning


@pytest.mark.parametrize("room", range(0, 140, 9))
def test_a_full_disk_that_gets_room_again_leaves_no_hole(tmp_path, room):
    spool = Spool(tmp_path)
    fill(spool, 1, 2)
    spool.settle()
    with file_size_limit(segments(tmp_path)[0].stat().st_size + room):
        fill(spool, 3, 6)
        spool.settle()
        if room < 4 * 31:
            assert spool.failure is not None
            assert not spool.is_settled
        fill(spool, 7, 7)
        spool.settle()
    fill(spool, 8, 8)
    spool.settle()
    assert spool.failure is None
    spool.close()
    assert seqs(tmp_path) == list(range(1, 9))


def test_a_buffer_that_cannot_be_written_is_dropped_once_the_journal_has_it(tmp_path):
    spool = Spool(tmp_path)
    full = tmp_path / f"{1:020d}.spool"
    full.symlink_to("/dev/full")
    fill(spool, 1, 3)
    spool.settle()
    assert spool.failure is not None
    spool.forget(2)
    assert not spool.is_settled
    full.unlink()  # reading it would never end
    spool.forget(3)
    assert spool.is_settled
    fill(spool, 4, 4)
    spool.settle()
    assert spool.failure is None
    spool.close()
    assert seqs(tmp_path, after_seq=3) == [4]
