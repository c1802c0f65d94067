"""The spool: framed events appended to files, one write per settle, so that they survive kill -9 of this process.

Durability against power loss is the SQLite journal's part; a segment is deleted once that holds all of it.
"""

import os
from collections import deque
from pathlib import Path

from baseload.wire.journal import SEGMENT_MAGIC, Frame, frame, read_frames

_SUFFIX = ".spool"


class Spool:
    """Append-only segments in one folder, each named by the seq of its first frame.

    After a failed or short write the segment is given up (readers drop its torn end) and what was not wholly
    written goes into the next one, so a full disk that has room again leaves no hole.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = 4 << 20) -> None:
        self.folder = folder
        self.failure: OSError | None = None
        self._segment_bytes = segment_bytes
        self._buffer: list[bytes] = []
        self._next_seq = 0  # of the first frame in the buffer
        self._fd = -1
        self._path = folder
        self._size = 0
        self._closed_segments: deque[tuple[int, Path]] = deque()  # (last seq, path)

    @property
    def is_settled(self) -> bool:
        """Whether everything appended has been handed to the operating system."""
        return not self._buffer

    def append(self, seq: int, at_ns: int, body: bytes) -> None:
        """Buffer one event; seqs are contiguous."""
        if not self._buffer:
            self._next_seq = seq
        self._buffer.append(frame(seq, at_ns, body))

    def settle(self) -> None:
        """Write the buffer. An OSError is kept in `failure`, and the buffer for the next try."""
        if not self._buffer:
            return
        try:
            if self._fd < 0:
                self._open_segment()
            data = b"".join(self._buffer)
            written = os.write(self._fd, data)
        except OSError as error:
            self.failure = error
            self._give_up_segment()
            return
        if written < len(data):
            self._keep_unwritten(written)
            self._give_up_segment()
            return
        self.failure = None
        self._next_seq += len(self._buffer)
        self._buffer.clear()
        self._size += written
        if self._size >= self._segment_bytes:
            self._close_segment()

    def forget(self, seq: int) -> None:
        """Everything up to `seq` is in the journal: delete the closed segments that hold nothing later."""
        while self._closed_segments and self._closed_segments[0][0] <= seq:
            self._closed_segments.popleft()[1].unlink(missing_ok=True)
        if self.failure is not None and self._next_seq + len(self._buffer) - 1 <= seq:
            self._buffer.clear()

    def close(self) -> None:
        """Settle and close; the files stay."""
        self.settle()
        if self._fd >= 0:
            self._close_segment()

    def _open_segment(self) -> None:
        path = self.folder / f"{self._next_seq:020d}{_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, SEGMENT_MAGIC)
        except OSError:
            os.close(fd)
            raise
        self._fd, self._path, self._size = fd, path, len(SEGMENT_MAGIC)

    def _close_segment(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._closed_segments.append((self._next_seq - 1, self._path))

    def _give_up_segment(self) -> None:
        if self._fd >= 0:
            self._close_segment()

    def _keep_unwritten(self, written: int) -> None:
        whole = 0
        for data in self._buffer:
            if written < len(data):
                break
            written -= len(data)
            whole += 1
        del self._buffer[:whole]
        self._next_seq += whole
        self.failure = OSError(28, "No space left on device: the spool took only part of a write")


def segments(folder: Path) -> list[Path]:
    """The spool's files, oldest first."""
    return sorted(path for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())


def read_spool(folder: Path, *, after_seq: int) -> tuple[list[Frame], str]:
    """The contiguous frames after `after_seq`, oldest first, and what had to be left out, in words ("": nothing).

    A torn end of a segment is dropped: it was never settled. Frames after a gap are of no use either; a gap comes of
    losing power, never of a kill, and then only what was not yet on stable storage is gone.
    """
    found: list[Frame] = []
    expected = after_seq + 1
    for path in segments(folder):
        data = path.read_bytes()
        if not data.startswith(SEGMENT_MAGIC):
            continue  # created, and the process was killed before its first write
        frames, _ = read_frames(data, start=len(SEGMENT_MAGIC))
        for one in frames:
            if one.seq < expected:
                continue
            if one.seq > expected:
                return (
                    found,
                    f"records {expected} to {one.seq - 1} are missing from the spool; later ones are dropped",
                )
            found.append(one)
            expected += 1
    return found, ""
