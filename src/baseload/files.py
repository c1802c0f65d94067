"""Files written whole or not at all: beside their place first, then renamed into it."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path


def write_whole(
    path: Path, chunks: Iterable[bytes | memoryview], *, is_durable: bool = False, mode: int = 0o666
) -> None:
    """Put a file in place so that readers find the old one or all of the new one, whenever this process is killed.

    `is_durable`: on return it survives the loss of power too. Several processes and threads may write the same file;
    the last one stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    partial.unlink(missing_ok=True)  # left by a killed process of the same number
    try:
        write_new(partial, chunks, is_flushed=is_durable, mode=mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if is_durable:
        flush_directory(path.parent)


def write_new(path: Path, chunks: Iterable[bytes | memoryview], *, is_flushed: bool, mode: int = 0o666) -> None:
    """Create a file that is not there yet, for no more eyes than `mode` says. `is_flushed`: its bytes are on disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(chunks)
        if is_flushed:
            file.flush()
            os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Make names durable: a file made or renamed is on disk only once its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
