"""The data directory: one control process at a time, and the note by which others find it."""

import fcntl
import os
from pathlib import Path

import msgspec

from baseload.domain.errors import ControlError, JournalError
from baseload.files import write_whole

_LOCK = "lock"
_NOTE = "control.json"


class Running(msgspec.Struct, frozen=True):
    """Where the running control process is reached."""

    pid: int
    url: str


class DataDir:
    """A locked data directory. The lock goes with the process, so a killed one leaves nothing to clean up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    @property
    def spool(self) -> Path:
        """Where the spool's segments are."""
        return self.path / "spool"

    @property
    def workers(self) -> Path:
        """Where workers are registered and log."""
        return self.path / "workers"

    def open(self) -> None:
        """Create the folders and take the lock; ControlError names the process that has it."""
        try:
            for folder in (self.path, self.spool, self.workers):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise ControlError(
                f"Another baseload process (pid {pid}) uses the data directory {self.path}.",
                hint="Stop it with Ctrl-C or `kill` and its pid, or choose another directory with --data-dir.",
            ) from None
        try:
            os.truncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # the disk is full
            os.close(fd)
            raise self._unusable(error) from error
        self._fd = fd
        (self.path / _NOTE).unlink(missing_ok=True)

    def _unusable(self, error: OSError) -> JournalError:
        return JournalError(
            f"The data directory {self.path} cannot be used: {error.strerror}.",
            hint="Choose another with --data-dir, or change its permissions, or make room.",
        )

    def announce(self, url: str) -> None:
        """Write the note for commands that want to reach this process."""
        write_whole(self.path / _NOTE, [msgspec.json.encode(Running(os.getpid(), url))])

    def close(self) -> None:
        """Delete the note and give the lock back."""
        if self._fd < 0:
            return
        (self.path / _NOTE).unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


def find_running(path: Path) -> Running | None:
    """The control process that runs on this data directory and takes requests, if one does."""
    try:
        note = msgspec.json.decode((path / _NOTE).read_bytes(), type=Running)
        fd = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, msgspec.MsgspecError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return note
    else:
        return None  # left behind by a killed process
    finally:
        os.close(fd)
