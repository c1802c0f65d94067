"""Asking for files before they are needed: with a cold disk, reading and importing then take their time at once."""

import contextlib
import importlib.util
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

_SHARE = 0.5  # of the memory that is free: more would push out what was just read
_LARGE_BYTES = 1 << 20  # smaller files are read as fast as they are asked for


def begin(*models: Path) -> None:
    """Ask the kernel, in a thread, for the large files of JAX and of each model (a folder or one file).

    Costs next to nothing where they are in memory already. What cannot be read is left to whoever needs it.
    """
    threading.Thread(target=_ask, args=models, name="read ahead", daemon=True).start()


def _ask(*models: Path) -> None:
    left = int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _SHARE)
    for path in _files(models):
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            if _LARGE_BYTES <= size <= left:
                left -= size
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _files(models: Iterable[Path]) -> Iterator[Path]:
    found = importlib.util.find_spec("jaxlib")
    for folder in found.submodule_search_locations or () if found is not None else ():
        yield from sorted(Path(folder).glob("*.so*"))
    for model in models:
        if model.is_dir():
            yield from sorted(path for path in model.iterdir() if path.suffix in (".safetensors", ".packed"))
        else:
            yield model
