"""Starts, watches and ends worker processes, and tells the machine what became of them.

No part of this polls for a start or an end: the ready-file is noticed by inotify, the end by a pidfd, for our own
children and for workers adopted from an earlier control process alike.
"""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

import msgspec

from baseload.domain.events import Event, WorkerExited, WorkerReady, WorkerSampled, WorkerStarted
from baseload.domain.model import ModelSpec
from baseload.domain.status import ReplicaStatus, SpareStatus
from baseload.domain.units import NS_PER_S
from baseload.live.inotify import FolderWatch
from baseload.live.probe import Probe, Telling
from baseload.live.process import (
    Identity,
    Registration,
    WorkerFiles,
    find_by_argument,
    identify,
    kill_group,
    known_files,
    open_pidfd,
    prune_logs,
    send,
)
from baseload.live.spares import REFILL_S, Spare, SparePool

_log = logging.getLogger("baseload.live")
NOT_STARTED = 127
_UNKNOWN_CODE = 1
_LOGS_KEPT = 20
_RESTART_PROBE_S = 10.0  # one that is busy (compiling, say) is slow to answer, and must not be lost for it
Command = Callable[[ModelSpec, WorkerFiles], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherOptions:
    """How workers are started and watched. `command` builds the command line; `cache_dir` is for the default one."""

    cache_dir: Path
    command: Command | None = None
    lease_s: float = 5.0
    sample_s: float = 1.0
    unresponsive_s: float = 120.0  # a ready worker that answers no probe for so long is killed
    orphan_grace_s: float = 5.0
    spares: int = 0  # processes kept ready to become a worker; only for the default command
    spare_refill_s: float = REFILL_S


@dataclass(slots=True, eq=False)
class _Worker:
    replica_id: str
    files: WorkerFiles
    pid: int
    pidfd: int
    child: subprocess.Popen[bytes] | None  # None: adopted from an earlier control process
    telling: Telling = field(default_factory=Telling)
    task: asyncio.Task[None] | None = None
    kill_handle: asyncio.TimerHandle | None = None
    ended_why: str = ""  # why we ended it, when we did
    is_unwanted: bool = False  # the machine does not know it: nothing is told


class ProcessLauncher:
    """Implements core.ports.Launcher with processes of this machine, registered in `folder` (DIR/workers)."""

    def __init__(
        self, folder: Path, *, tell: Callable[[Event], None], probe: Probe, options: LauncherOptions
    ) -> None:
        self._folder = folder
        self._tell = tell
        self._probe = probe
        self._options = options
        self._workers: dict[str, _Worker] = {}
        self._watch = FolderWatch(folder, self._file_appeared)
        count = options.spares if options.command is None else 0
        self._spares = SparePool(folder, count=count, refill_s=options.spare_refill_s)
        self._lease_handle: asyncio.TimerHandle | None = None
        self._none_left = asyncio.Event()
        self._none_left.set()

    def open(self) -> None:
        """Begin to watch the folder and to renew leases."""
        self._loop = asyncio.get_running_loop()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._watch.start()
        self._spares.open()
        self._renew_leases()

    # -- core.ports.Launcher -------------------------------------------------------------------------------------

    def start(self, replica_id: str, spec: ModelSpec) -> None:
        """Begin to start a worker: a spare becomes it, or else a new process."""
        files = WorkerFiles(self._folder, replica_id)
        spare = self._spares.take(spec.engine.threads)
        try:
            files.ready.unlink(missing_ok=True)
            files.touch_lease()
            if spare is None or not self._hand_over(spare, spec, files):
                self._spawn(spec, files)
        except OSError as error:
            files.forget()
            self._tell(WorkerExited(replica_id, NOT_STARTED, str(error)))
        self._spares.refill_later(spec.engine.threads)

    def _hand_over(self, spare: Spare, spec: ModelSpec, files: WorkerFiles) -> bool:
        """Let the spare become this worker; False where it has died meanwhile."""
        try:
            files.register(Registration(files.replica_id, spec.name, spare.identity))
            spare.become(worker_arguments(spec, files, cache_dir=self._options.cache_dir), log=files.log)
        except OSError as error:
            _log.warning("A spare process could not be used: %s.", error)
            kill_group(spare.identity.pid)
            os.close(spare.pidfd)
            spare.part()
            spare.child.wait()
            return False
        self._add(files, spare.identity, spare.pidfd, spare.child)
        self._tell(WorkerStarted(files.replica_id, spare.identity.pid, ""))
        return True

    def _spawn(self, spec: ModelSpec, files: WorkerFiles) -> None:
        replica_id = files.replica_id
        files.register(Registration(replica_id, spec.name, None))
        with files.log.open("ab") as log:
            child = subprocess.Popen(
                self._command(spec, files),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        identity = identify(child.pid)
        pidfd = -1 if identity is None else open_pidfd(identity)
        if identity is None or pidfd < 0:
            self._tell(WorkerStarted(replica_id, child.pid, ""))
            files.forget()
            self._tell(WorkerExited(replica_id, child.wait(), files.log_tail()))
            return
        worker = self._add(files, identity, pidfd, child)
        try:
            files.register(Registration(replica_id, spec.name, identity))
        except OSError as error:  # the disk is full: one that a later control could not find must not stay
            self._end(worker, 0.0, why=f"it could not be registered: {error}")
        self._tell(WorkerStarted(replica_id, child.pid, ""))
        if files.ready.exists():
            self._greet(worker)

    def stop(self, replica_id: str, grace_ns: int) -> None:
        """Begin to end a worker."""
        worker = self._workers.get(replica_id)
        if worker is None:
            self._tell(WorkerExited(replica_id, 0, "There was no such process any more."))
            return
        self._end(worker, grace_ns / NS_PER_S, why="ended on request")

    # -- recovery and end ----------------------------------------------------------------------------------------

    async def reconcile(self, replicas: Sequence[ReplicaStatus]) -> None:
        """After ControlStarted: adopt the workers that the machine knows and that are healthy, end all others."""
        wanted = {one.replica_id for one in replicas}
        found = {files.replica_id: files for files in known_files(self._folder)}
        started_since = set(self._workers)
        for replica_id, files in found.items():
            if replica_id in started_since:
                continue
            adopted = self._attach(files)
            if adopted is not None and replica_id not in wanted:
                adopted.is_unwanted = True
                self._end(adopted, self._options.orphan_grace_s, why="not wanted any more")
        await asyncio.gather(*(self._report(name, found) for name in sorted(wanted - started_since)))
        prune_logs(self._folder, keep=_LOGS_KEPT)

    async def close(self, *, grace_s: float = 5.0) -> None:
        """End every worker that is left and stop watching."""
        self._spares.close()
        for worker in list(self._workers.values()):
            self._end(worker, grace_s, why="the control process ends")
        await self._none_left.wait()
        self.detach()
        prune_logs(self._folder, keep=_LOGS_KEPT)

    def detach(self) -> None:
        """Stop watching and leave the workers that are left alone: a later control process adopts them."""
        if self._lease_handle is not None:
            self._lease_handle.cancel()
        self._spares.close()
        for worker in list(self._workers.values()):
            self._drop(worker)
        self._watch.close()

    def kill_all(self) -> int:
        """End every worker at once, without asking; each exit is told as usual. Gives how many there were."""
        for worker in list(self._workers.values()):
            worker.ended_why = worker.ended_why or "the control process ends"
            self._kill(worker)
        return len(self._workers)

    def look_at(self, replica_id: str) -> None:
        """A dispatch to this replica failed: tell its next sample, as a sign of life, whatever it says."""
        worker = self._workers.get(replica_id)
        if worker is not None:
            worker.telling.is_due = True

    @property
    def pids(self) -> dict[str, int]:
        """The workers' processes by replica id."""
        return {replica_id: worker.pid for replica_id, worker in self._workers.items()}

    @property
    def spares(self) -> tuple[SpareStatus, ...]:
        """The processes kept ready."""
        return self._spares.statuses

    # -- one worker ----------------------------------------------------------------------------------------------

    def _command(self, spec: ModelSpec, files: WorkerFiles) -> Sequence[str]:
        if self._options.command is not None:
            return self._options.command(spec, files)
        return worker_command(spec, files, cache_dir=self._options.cache_dir)

    def _add(
        self, files: WorkerFiles, identity: Identity, pidfd: int, child: subprocess.Popen[bytes] | None
    ) -> _Worker:
        worker = _Worker(files.replica_id, files, identity.pid, pidfd, child)
        self._workers[files.replica_id] = worker
        self._none_left.clear()
        self._loop.add_reader(pidfd, self._exited, worker)
        return worker

    def _attach(self, files: WorkerFiles) -> _Worker | None:
        """Watch a worker that an earlier control process started; None, and its files are gone, when it is not."""
        registration = files.read_registration()
        identity = registration.process if registration is not None else None
        if registration is not None and identity is None:
            identity = find_by_argument(str(files.lease))
        pidfd = open_pidfd(identity) if identity is not None else -1
        if identity is None or pidfd < 0:
            files.forget()
            return None
        files.touch_lease()
        return self._add(files, identity, pidfd, None)

    async def _report(self, replica_id: str, found: dict[str, WorkerFiles]) -> None:
        """Tell the machine what became of a replica that it knows from before."""
        worker = self._workers.get(replica_id)
        if worker is None:
            files = found.get(replica_id)
            detail = (files.log_tail() if files else "") or "It was gone when the control process came back."
            self._tell(WorkerExited(replica_id, _UNKNOWN_CODE, detail))
            return
        url = worker.files.read_url()
        if not url:
            self._tell(WorkerStarted(replica_id, worker.pid, ""))
            if worker.files.ready.exists():
                self._greet(worker)
        elif await self._probe.is_healthy(url, timeout_s=_RESTART_PROBE_S):
            self._tell(WorkerReady(replica_id, url))
            self._greet(worker, is_known_ready=True)
        elif self._workers.get(replica_id) is worker:
            self._end(worker, self._options.orphan_grace_s, why="it did not answer after the restart")

    def _file_appeared(self, name: str) -> None:
        replica_id, _, suffix = name.rpartition(".")
        worker = self._workers.get(replica_id)
        if suffix != "ready" or worker is None or worker.task is not None or worker.is_unwanted:
            return
        if worker.files.ready.exists():
            self._greet(worker)

    def _greet(self, worker: _Worker, *, is_known_ready: bool = False) -> None:
        if worker.task is None:
            worker.task = self._loop.create_task(self._attend(worker, is_known_ready))

    async def _attend(self, worker: _Worker, is_known_ready: bool) -> None:
        url = worker.files.read_url()
        if not is_known_ready:
            await self._probe.until_healthy(url)
            self._tell(WorkerReady(worker.replica_id, url))
        silent_since = self._loop.time()
        while True:
            await asyncio.sleep(self._options.sample_s)
            sample = await self._probe.sample(url)
            now = self._loop.time()
            if sample is not None:
                silent_since = now
                if worker.telling.wants(sample, now):
                    self._tell(WorkerSampled(worker.replica_id, sample))
            elif now - silent_since > self._options.unresponsive_s:
                self._end(worker, 0.0, why=f"it answered no probe for {self._options.unresponsive_s:.0f} s")

    def _end(self, worker: _Worker, grace_s: float, *, why: str) -> None:
        if not worker.ended_why:
            worker.ended_why = why
            send(worker.pidfd, SIGTERM)
        if worker.kill_handle is not None:
            worker.kill_handle.cancel()
        worker.kill_handle = self._loop.call_later(max(grace_s, 0.0), self._kill, worker)

    def _kill(self, worker: _Worker) -> None:
        worker.ended_why += "; it did not end by itself and was killed"
        kill_group(worker.pid)

    def _exited(self, worker: _Worker) -> None:
        exit_code = _UNKNOWN_CODE if worker.child is None else worker.child.wait()
        detail = worker.files.log_tail()
        if worker.ended_why and worker.ended_why != "ended on request":
            detail = f"{detail}\n{worker.ended_why}".strip()
        elif worker.child is None:
            exit_code = 0 if worker.ended_why else exit_code
            detail = f"{detail}\nits exit code is not known: it was started before this control process".strip()
        self._drop(worker)
        worker.files.forget()
        if exit_code == 0 or worker.is_unwanted:
            worker.files.log.unlink(missing_ok=True)
        else:
            prune_logs(self._folder, keep=_LOGS_KEPT)
        if not worker.is_unwanted:
            self._tell(WorkerExited(worker.replica_id, exit_code, detail))

    def _drop(self, worker: _Worker) -> None:
        self._loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        if worker.kill_handle is not None:
            worker.kill_handle.cancel()
        if worker.task is not None:
            worker.task.cancel()
        del self._workers[worker.replica_id]
        if not self._workers:
            self._none_left.set()

    def _renew_leases(self) -> None:
        for worker in list(self._workers.values()):
            try:
                worker.files.touch_lease()
            except OSError as error:
                _log.error("The lease of worker %s cannot be renewed: %s.", worker.replica_id, error)
            worker.files.bound_log()
            self._file_appeared(worker.files.ready.name)  # in case the kernel dropped its notice
        self._lease_handle = self._loop.call_later(self._options.lease_s, self._renew_leases)


def worker_command(spec: ModelSpec, files: WorkerFiles, *, cache_dir: Path) -> list[str]:
    """The command line of our own worker for this model."""
    return [sys.executable, "-u", "-m", "baseload.worker", *worker_arguments(spec, files, cache_dir=cache_dir)]


def worker_arguments(spec: ModelSpec, files: WorkerFiles, *, cache_dir: Path) -> list[str]:
    """What stands after the program's name."""
    return [
        *("--model", spec.source),
        *("--name", spec.name),
        *("--port", "0"),
        *("--spec-json", msgspec.json.encode(spec.engine).decode()),
        *("--cache-dir", str(cache_dir)),
        *("--replica-id", files.replica_id),
        *("--ready-file", str(files.ready)),
        *("--lease-file", str(files.lease)),
    ]
