"""What steps cost, kept beside the compiled programs: a worker that wakes again knows it from its first request on.

An entry is known by all that its programs are (shapes, kernels, versions, processor, cores, our own source) and by
the machine. One that is anything else's, too old, damaged or not this user's own is not believed: the worker then
learns anew, as at its first wake.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from baseload.core.step_times import LearnedTimes, StepTimes
from baseload.files import write_whole

MAGIC = "baseload-times-1"
MOST_AGE_S = 30 * 86_400.0
MAX_ENTRIES = 256  # of some 4 kB; of more, the oldest go


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    magic: str
    identity: str
    machine: str
    at_s: float
    digest: str  # of the times, as they are written
    times: msgspec.Raw


class KeptTimes:
    """The step times of one model as one set of programs runs it here."""

    def __init__(
        self, folder: Path | None, identity: str, *, machine: str = "", now_s: Callable[[], float] = time.time
    ) -> None:
        """`folder` None: nothing is kept. `identity`: of all that the programs depend on."""
        self._path = None if folder is None else folder / f"{identity}.json"
        self._identity = identity
        self._machine = machine or machine_id()
        self._now_s = now_s

    def load(self) -> StepTimes:
        """As they were kept; a new, empty model where nothing is there that can be believed."""
        if self._path is None:
            return StepTimes()
        try:
            if self._path.stat().st_uid != os.getuid():
                return StepTimes()
            entry = msgspec.json.decode(self._path.read_bytes(), type=_Entry)
            age_s = self._now_s() - entry.at_s
            known = (entry.magic, entry.identity, entry.machine, entry.digest)
            if known != (MAGIC, self._identity, self._machine, _digest(entry.times)) or not 0 <= age_s < MOST_AGE_S:
                return StepTimes()
            return StepTimes.of(msgspec.json.decode(entry.times, type=LearnedTimes))
        except (OSError, ValueError, msgspec.MsgspecError):  # whatever is wrong with it, learning anew is the remedy
            return StepTimes()

    def save(self, times: StepTimes) -> None:
        """Write them, whole or not at all; what cannot be written is learned again at the next wake."""
        if self._path is None or not times.steps:
            return
        raw = msgspec.Raw(msgspec.json.encode(times.learned()))
        entry = _Entry(MAGIC, self._identity, self._machine, self._now_s(), _digest(raw), raw)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._path, [msgspec.json.encode(entry)])
            self._drop_oldest(self._path.parent)
        except OSError:
            return

    @staticmethod
    def _drop_oldest(folder: Path) -> None:
        found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in found[:-MAX_ENTRIES]:
            path.unlink(missing_ok=True)


def machine_id() -> str:
    """Names this machine where it has a name that lasts; a cache folder may be shared between machines."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or os.uname().nodename
    except OSError:
        return os.uname().nodename


def _digest(times: bytes) -> str:
    return hashlib.sha256(bytes(times)).hexdigest()
