"""Spare processes: started and imported beforehand, without a model, each to become one worker, once.

A spare ends by itself when the control process does (its standard input ends), and costs memory but no time until
it is taken. A new one is started a while after one was taken, at low priority. Where none is ready, the launcher
starts a worker as if there were no spares.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import psutil

from baseload.domain.status import SpareStatus
from baseload.live.process import Identity, identify, open_pidfd, send

_log = logging.getLogger("baseload.live")
REFILL_S = 1.0  # after a start: the model that wakes goes first
_MOST_FAILURES = 5  # in a row; then none is kept until a worker is started the next time
_WARM = b"warm\n"


@dataclass(slots=True, eq=False)
class Spare:
    """One process; `identity` tells it from any other."""

    child: subprocess.Popen[bytes]
    identity: Identity
    pidfd: int
    threads: int  # of the device it has opened; a model with other settings starts on its own
    is_warm: bool = False

    def become(self, arguments: Sequence[str], *, log: Path) -> None:
        """Hand it the command line of the worker that it is to be. Raises OSError where it is gone."""
        stdin = self.child.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"arguments": list(arguments), "log": str(log)}).encode() + b"\n")
            stdin.flush()
        finally:
            self.part()

    def part(self) -> None:
        """Close the pipes: one that waits ends, one that was handed its work goes on."""
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                continue  # what was left in a buffer cannot reach an ended process


class SparePool:
    """Keeps up to `count` spares. All methods belong to the event loop."""

    def __init__(
        self, folder: Path, *, count: int, command: Sequence[str] | None = None, refill_s: float = REFILL_S
    ) -> None:
        self._folder = folder
        self._count = count
        self._command = command or (sys.executable, "-u", "-m", "baseload.worker", "--spare", str(folder))
        self._refill_s = refill_s
        self._spares: list[Spare] = []
        self._threads = 0
        self._failures = 0
        self._refill_handle: asyncio.TimerHandle | None = None
        self._is_any_warm = asyncio.Event()

    def open(self) -> None:
        """Begin to keep spares."""
        self._loop = asyncio.get_running_loop()
        self.refill_later(self._threads)

    def take(self, threads: int) -> Spare | None:
        """A warm spare whose device has so many threads; it is the caller's, with its pidfd. None: there is none."""
        for spare in self._spares:
            if spare.is_warm and spare.threads == threads:
                self._forget(spare)
                return spare
        return None

    def refill_later(self, threads: int) -> None:
        """A worker was started: have new spares soon, for models like it."""
        self._threads = threads
        self._failures = 0
        self._schedule(self._refill_s)

    def close(self) -> None:
        """End them all."""
        self._count = 0
        if self._refill_handle is not None:
            self._refill_handle.cancel()
        for spare in list(self._spares):
            self._discard(spare)
        self._log_file.unlink(missing_ok=True)

    async def until_warm(self) -> None:
        """Return once one is ready."""
        await self._is_any_warm.wait()

    @property
    def statuses(self) -> tuple[SpareStatus, ...]:
        """What is kept, and what it costs."""
        return tuple(
            SpareStatus(spare.identity.pid, spare.is_warm, _resident_bytes(spare.identity.pid))
            for spare in self._spares
        )

    @property
    def _log_file(self) -> Path:
        return self._folder / "spare.log"

    def _schedule(self, after_s: float) -> None:
        if self._refill_handle is not None:
            self._refill_handle.cancel()
        self._refill_handle = self._loop.call_later(after_s, self._refill) if self._count else None

    def _refill(self) -> None:
        for spare in [one for one in self._spares if one.threads != self._threads]:
            self._discard(spare)
        while len(self._spares) < self._count:
            try:
                self._start()
            except OSError as error:
                self._failed(str(error))
                return

    def _start(self) -> None:
        with self._log_file.open("wb") as log:
            child = subprocess.Popen(
                [*self._command, "--threads", str(self._threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        identity = identify(child.pid)
        pidfd = -1 if identity is None else open_pidfd(identity)
        if identity is None or pidfd < 0:
            child.communicate()
            raise OSError(f"it ended at once with {child.returncode}{self._last_words()}")
        spare = Spare(child, identity, pidfd, self._threads)
        self._spares.append(spare)
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        self._loop.add_reader(child.stdout.fileno(), self._said, spare)
        self._loop.add_reader(pidfd, self._ended, spare)

    def _said(self, spare: Spare) -> None:
        assert spare.child.stdout is not None
        said = os.read(spare.child.stdout.fileno(), len(_WARM))
        spare.is_warm = said == _WARM
        self._note()
        if not said:  # it is about to end
            self._loop.remove_reader(spare.child.stdout.fileno())

    def _ended(self, spare: Spare) -> None:
        self._forget(spare)
        os.close(spare.pidfd)
        spare.part()
        code = spare.child.wait()
        self._failed(f"it ended with {code}{self._last_words()}")

    def _last_words(self) -> str:
        words = self._log_file.read_text(errors="replace").split("\n") if self._log_file.exists() else []
        said = [line for line in words if line.strip()]
        return f": {said[-1]}" if said else ""

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures < _MOST_FAILURES:
            self._schedule(self._refill_s * 2**self._failures)
            _log.info("A spare process did not live: %s.", why)
        else:
            _log.warning("No spare process is kept for now, models wake more slowly: %s.", why)

    def _forget(self, spare: Spare) -> None:
        assert spare.child.stdout is not None
        self._spares.remove(spare)
        self._loop.remove_reader(spare.child.stdout.fileno())
        self._loop.remove_reader(spare.pidfd)
        self._note()

    def _note(self) -> None:
        if any(spare.is_warm for spare in self._spares):
            self._is_any_warm.set()
        else:
            self._is_any_warm.clear()

    def _discard(self, spare: Spare) -> None:
        self._forget(spare)
        send(spare.pidfd, SIGKILL)  # it holds nothing
        os.close(spare.pidfd)
        spare.part()
        spare.child.wait()


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
