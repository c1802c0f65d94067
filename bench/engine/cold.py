"""A cold disk: the kernel's copies of files thrown out of memory, and proof of how much is gone."""

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

DROP = Path("/proc/sys/vm/drop_caches")


def make_cold(parts: dict[str, list[Path]], drop: Path = DROP) -> str:
    """What memory holds of these parts (names; files and folders) is thrown out; in words, how and what stayed.

    As root all that no running process uses is thrown out, whatever file it is of, and names of files too; else these
    files alone (posix_fadvise). What a running process has mapped stays either way, and so does what is not yet
    written.
    """
    files = {name: list(files_of(paths)) for name, paths in parts.items()}
    os.sync()
    for path in (path for some in files.values() for path in some):
        _forget(path)
    how = "all files"
    try:
        drop.write_text("3")
    except OSError:
        how = "these files only"
    return f"{how} thrown out; in memory stayed " + ", ".join(stayed(name, some) for name, some in files.items())


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves and those below folders; links are followed to files, not to folders."""
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (one for one in sorted(path.rglob("*")) if one.is_file() and one.stat().st_size)


def stayed(name: str, files: list[Path]) -> str:
    """How much of some files memory holds."""
    held, whole = resident_bytes(files), sum(path.stat().st_size for path in files)
    return f"{held / 1e6:.0f} of {whole / 1e6:.0f} MB of {name}"


def resident_bytes(files: Iterable[Path]) -> int:
    """Bytes of files that the page cache holds (mincore), whole pages, the last one to the file's end."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    total = 0
    for path in files:
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            held = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            view = np.frombuffer(mapped, np.uint8)
            failed = libc.mincore(view.ctypes.data, size, held.ctypes.data)
            del view  # the map cannot be closed while it is looked at
        if failed:
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        pages = np.flatnonzero(held & 1)
        total += int(np.minimum((pages + 1) * mmap.PAGESIZE, size).sum() - (pages * mmap.PAGESIZE).sum())
    return total


def _forget(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
