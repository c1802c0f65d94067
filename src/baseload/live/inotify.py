"""Linux inotify through the C library: a callback when a file appears complete in a folder, without polling."""

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

from baseload.domain.errors import WorkerError

_IN_CLOSE_WRITE = 0x0008
_IN_MOVED_TO = 0x0080
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_HEAD = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


class FolderWatch:
    """Calls `on_file(name)` in the event loop for each file written and closed, or renamed into, the folder."""

    def __init__(self, folder: Path, on_file: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_file = on_file
        self._fd = -1

    def start(self) -> None:
        """Begin to watch."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_FLAGS)
        if self._fd < 0:
            self._fail()
        if libc.inotify_add_watch(self._fd, os.fsencode(self._folder), _IN_CLOSE_WRITE | _IN_MOVED_TO) < 0:
            os.close(self._fd)
            self._fail()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 64 << 10)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            _, _, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            self._on_file(os.fsdecode(data[at - length : at].rstrip(b"\0")))

    def _fail(self) -> None:
        why = os.strerror(ctypes.get_errno())
        raise WorkerError(
            f"The folder {self._folder} cannot be watched: {why}.",
            hint="Raise fs.inotify.max_user_instances or max_user_watches.",
        )
