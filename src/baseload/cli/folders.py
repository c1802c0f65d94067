"""Whether a folder can be made and written: tried, not guessed from its mode, and nothing is left behind."""

import errno
import os
import tempfile
from pathlib import Path

PROBE_BYTES = 64 << 10
_HINTS = {
    errno.EACCES: "Change its owner or mode",
    errno.EPERM: "Change its owner or mode",
    errno.EROFS: "Mount it writable",
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some of the quota there",
    errno.ENAMETOOLONG: "Take a shorter name",
}


def why_unwritable(folder: Path) -> tuple[str, str] | None:
    """Why this folder cannot be made or written, and what to do about it; None where it can."""
    place, verb = folder, "reached"
    try:
        while not _exists(place):
            place = place.parent
        if not place.is_dir():
            return f"{place} is a file, where a folder is needed", f"Move {place} away"
        verb = "written" if place == folder else "made"
        _write_in(place)
    except OSError as error:
        said = error.strerror or str(error)
        where = "" if place == folder else f" in {place}"
        return f"{folder} cannot be {verb}{where}: {said}", _HINTS.get(error.errno or 0, "See to its file system")
    for path in sorted(folder.iterdir()) if place == folder else ():
        if not os.access(path, os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)):
            return f"{path} cannot be read and written", "Change its owner or mode"
    return None


def _exists(path: Path) -> bool:
    """As Path.exists, but an OSError where nobody can say, and a dangling link is something that exists."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _write_in(place: Path) -> None:
    """Make a folder there with a file in it, on the disk itself, and delete both."""
    with tempfile.TemporaryDirectory(prefix=".baseload-", dir=place) as made:
        fd = os.open(Path(made) / "probe", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            left = PROBE_BYTES
            while left:
                left -= os.write(fd, bytes(left))
            os.fsync(fd)
        finally:
            os.close(fd)
