"""The live driver: stamps events, steps the control machine, journals, and performs its actions.

Everything runs in one event loop. An event told while another is being worked on (a sink that fails at once) waits
its turn, so the machine is never re-entered and the journal's order is the order of the steps.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

from msgspec.structs import replace

from baseload.core.control import ControlMachine
from baseload.core.ports import JournalRow, Launcher, Sink, UsageRow
from baseload.domain.actions import (
    Action,
    CancelTimer,
    Dispatch,
    Record,
    Refuse,
    SetTimer,
    Shutdown,
    StartWorker,
    StopWorker,
)
from baseload.domain.errors import JournalError, Reason
from baseload.domain.events import (
    ControlStarted,
    DispatchFailed,
    Event,
    ModelPut,
    RequestArrived,
    RequestFinished,
    ShutdownAsked,
    TimerFired,
    WorkerExited,
)
from baseload.domain.model import ModelSpec
from baseload.domain.status import ControlStatus, SpareStatus
from baseload.domain.tenant import Allowance, Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Entry, Request
from baseload.live.clock import Clock
from baseload.live.journal import LiveJournal
from baseload.live.rollup import Rollup
from baseload.live.store import Store
from baseload.live.timers import Timers
from baseload.wire.journal import encode_event

_SETTLE_AFTER_S = 0.01  # the longest that an event stays in this process's memory alone
_RETRY_AFTER_NS = 2 * NS_PER_S


class LiveControl:
    """Implements core.ports.Control around the control machine. Made by `baseload.live.run`."""

    def __init__(
        self,
        *,
        machine: ControlMachine,
        seq: int,
        clock: Clock,
        journal: LiveJournal,
        reader: Store,
        snapshot_every: int,
        announce: Callable[[str], None],
    ) -> None:
        self._machine = machine
        self._step = machine.step
        self._seq = seq
        self._now_ns = clock.now_ns
        self._journal = journal
        self._append = journal.append
        self._reader = reader
        self._reading = asyncio.Lock()
        self._launcher: Launcher | None = None
        self._on_failed_dispatch: Callable[[str], None] | None = None
        self._spares: Callable[[], tuple[SpareStatus, ...]] | None = None
        self._kill_workers: Callable[[], int] | None = None
        self._killed = 0
        self._timers = Timers(now_ns=clock.now_ns, fire=self._fire)
        self._sinks: dict[str, Sink] = {}
        self._queue: deque[Event] = deque()
        self._is_running = False
        self._is_settling_soon = False
        self._snapshot_every = snapshot_every
        self.snapshot_seq = seq
        self._announce = announce
        self._is_offline = False
        self._is_past_known = False  # offline: the machine was told that time has passed
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self._loop = asyncio.get_running_loop()
        self._shutdown = asyncio.Event()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the machine has shut down; an exception when it failed and the process must be restarted."""

    # -- the hot route -------------------------------------------------------------------------------------------

    def open(self, request: Request, sink: Sink) -> None:
        """Journal and step RequestArrived; the sink is called at once or later, exactly until the request ends."""
        if not self._journal.is_accepting or self.ended.done():
            sink.refuse(self._refusal(request.request_id))
            return
        self._sinks[request.request_id] = sink
        self.tell(RequestArrived(request))

    def tell(self, event: Event) -> None:
        """Journal and step an event; perform its actions."""
        if self.ended.done():
            return  # late words of a gateway or launcher that outlives the control
        if self._is_running:
            self._queue.append(event)
            return
        self._is_running = True
        try:
            self._work(event)
            while self._queue:
                self._work(self._queue.popleft())
        finally:
            self._is_running = False
        if not self._is_settling_soon:
            self._is_settling_soon = True
            self._loop.call_later(_SETTLE_AFTER_S, self._settle_soon)
        if self._seq - self.snapshot_seq >= self._snapshot_every:
            self.take_snapshot()

    def settle(self) -> None:
        """Hand all told events to the operating system, so that they survive kill -9 of this process."""
        self._journal.settle()

    def _work(self, event: Event) -> None:
        at_ns = self._now_ns()
        seq = self._seq + 1
        entries: list[Entry] = []
        try:
            actions = self._step(at_ns, event)
            for action in actions:
                if type(action) is Record:
                    entries.append(action.entry)  # noqa: PERF401  # a comprehension costs a call, each event
            self._append(seq, at_ns, event, entries)
        except Exception as error:
            self._fail(error, event)
            return
        self._seq = seq
        if type(event) is RequestFinished:
            self._sinks.pop(event.request_id, None)
        elif type(event) is DispatchFailed and self._on_failed_dispatch is not None:
            self._on_failed_dispatch(event.replica_id)
        for action in actions:
            if type(action) is not Record:  # those are journaled with their event
                self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatch(action)
            case SetTimer():
                self._timers.set(action.timer, action.at_ns)
            case CancelTimer():
                self._timers.cancel(action.timer)
            case Refuse():
                self._refuse(action)
            case StartWorker():
                self._start_worker(action)
            case StopWorker():
                self._journal.settle()
                if self._launcher is not None:
                    self._launcher.stop(action.replica_id, action.grace_ns)
            case Shutdown():
                self._shutdown.set()
            case Record():
                pass
            case _:
                assert_never(action)

    def _start_worker(self, action: StartWorker) -> None:
        self._journal.settle()  # so that a control killed now still knows of the worker
        if self._launcher is None:
            return
        try:
            self._launcher.start(action.replica_id, action.spec)
        except Exception as error:
            self._report("The launcher failed to start a worker", error)
            self.tell(WorkerExited(action.replica_id, 127, f"{type(error).__name__}: {error}"))

    def _dispatch(self, action: Dispatch) -> None:
        sink = self._sinks.get(action.request_id)
        if sink is None:  # its opener broke the contract, or the request was told to be finished meanwhile
            return
        try:
            sink.dispatch(action)
        except Exception as error:
            self._report("A sink failed to dispatch", error)
            detail = f"{type(error).__name__}: {error}"
            self.tell(DispatchFailed(action.request_id, action.replica_id, Reason.WORKER_ERROR, detail))

    def _refuse(self, action: Refuse) -> None:
        sink = self._sinks.pop(action.request_id, None)
        if sink is None:
            return
        try:
            sink.refuse(action)
        except Exception as error:
            self._report("A sink failed to refuse", error)

    # -- administration ------------------------------------------------------------------------------------------

    async def acknowledge(self, event: Event) -> None:
        """`tell`, and return once the event is on stable storage (fsync). Raises JournalError where it cannot be."""
        if self._journal.failure is not None:
            raise self._journal.failure
        encode_event(event)  # what cannot be written must not change anything; this says so before it has
        if self._is_offline and self.status().replicas and not self._is_past_known:
            # The end of a process that left workers behind: they are billed until then, however late it is now.
            self._is_past_known = True
            self.tell(ControlStarted(self._machine.policy_version, self._machine.seed, offline=True))
        if self._is_offline and isinstance(event, ModelPut) and not self.status().shutting_down:
            self.tell(ShutdownAsked(0))  # so that the machine starts no worker before the next ControlStarted
        self.tell(event)
        self._raise_if_failed()
        self._journal.settle()
        await self._journal.sync(self._seq)

    async def sync(self) -> None:
        """Return once everything told so far is on stable storage."""
        self._journal.settle()
        await self._journal.sync(self._seq)

    def key_by_hash(self, secret_sha256: str) -> Key | None:
        """The key with this hash, unless revoked."""
        return self._machine.key_by_hash(secret_sha256)

    def keys(self) -> Sequence[Key]:
        """All keys that are not revoked."""
        return self._machine.keys()

    def allowance(self, key_id: str) -> Allowance:
        """What is left of the key's per-minute limits."""
        return self._machine.allowance(key_id, self._now_ns())

    def model(self, name: str) -> ModelSpec | None:
        """The model's specification."""
        return self._machine.model(name)

    def models(self) -> Sequence[ModelSpec]:
        """All models, in the order they were added."""
        return self._machine.models()

    def status(self) -> ControlStatus:
        """Everything at this instant; offline, at the last one the machine knows of."""
        found = self._machine.status(0 if self._is_offline else self._now_ns())
        return found if self._spares is None else replace(found, spares=self._spares())

    def now_ns(self) -> int:
        """Wall time in nanoseconds that never runs backwards."""
        return self._now_ns()

    async def usage(self, *, from_day: str = "", to_day: str = "") -> list[UsageRow]:
        """Usage by day, key, model and class, including what runs now, all of one instant."""
        rollup = Rollup()
        seq, now_ns = self._seq, self.status().now_ns
        for entry in self._machine.open_entries(now_ns):
            rollup.add(entry, open_at_ns=now_ns)
        outside = [day for day, *_ in rollup.rows if day < from_day or day > (to_day or "9999")]
        rollup.rows = {key: sums for key, sums in rollup.rows.items() if key[0] not in outside}
        async with self._reading:
            await self._sync_to_read(seq)
            names = await asyncio.to_thread(
                self._reader.usage, rollup, up_to_seq=seq, from_day=from_day, to_day=to_day
            )
        return rollup.usage(names)

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> list[JournalRow]:
        """The newest `limit` journal records after `after_seq`, oldest first."""
        async with self._reading:
            await self._sync_to_read(self._seq)
            return await asyncio.to_thread(
                self._reader.rows, after_seq=after_seq, limit=limit, kind=kind, model=model
            )

    async def _sync_to_read(self, seq: int) -> None:
        try:
            await self._journal.sync(seq)
        except JournalError:  # told already through the journal's state; what is stored can still be shown
            return

    # -- life ----------------------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """The seq of the last event."""
        return self._seq

    @property
    def open_requests(self) -> int:
        """Requests whose sink is held."""
        return len(self._sinks)

    @property
    def has_failed(self) -> bool:
        """Whether the machine failed; the process must be restarted, and recovers without the event that did it."""
        return self.ended.done() and not self.ended.cancelled() and self.ended.exception() is not None

    @property
    def journal_failure(self) -> JournalError | None:
        """Why the journal cannot be written at this time, if so; new work is refused meanwhile."""
        return self._journal.failure

    def attach(
        self,
        launcher: Launcher,
        *,
        on_failed_dispatch: Callable[[str], None] | None = None,
        spares: Callable[[], tuple[SpareStatus, ...]] | None = None,
        kill_workers: Callable[[], int] | None = None,
    ) -> None:
        """Perform StartWorker and StopWorker through this launcher; without one they are ignored.

        `on_failed_dispatch(replica_id)` invites a look at a replica that could not be reached; `spares` tells for the
        status which processes are kept ready; `kill_workers` ends every worker at once and tells how many there were.
        """
        self._launcher = launcher
        self._on_failed_dispatch = on_failed_dispatch
        self._spares = spares
        self._kill_workers = kill_workers

    def take_snapshot(self) -> None:
        """Store the whole state with the next commit."""
        self.snapshot_seq = self._seq
        self._journal.snapshot(self._seq, self._now_ns(), self._machine.snapshot())

    def announce(self, url: str) -> None:
        """Note in the data directory where this control is reached; see `datadir.find_running`."""
        self._announce(url)

    def go_offline(self) -> None:
        """Perform nothing: no worker is started or ended, no timer fires. For administration without a process."""
        self._is_offline = True
        self._timers.close()

    async def stop(self, grace_s: float) -> bool:
        """An orderly end: take nothing new, let running requests finish for so long, end workers, close the files.

        False when the machine did not come to its end a while after the grace, or workers were killed.
        """
        is_orderly = self.ended.done() or await self.drain(grace_s=grace_s)
        for close in reversed(self.closers):
            await close()
        self.closers.clear()
        return is_orderly and not self._killed

    def kill_workers(self) -> None:
        """End every worker that is left at once; the machine hears of each."""
        if self._kill_workers is not None:
            self._killed += self._kill_workers()

    async def drain(self, *, grace_s: float) -> bool:
        """Ask for an orderly end and wait for it; False when it did not come a while after the grace."""
        self.tell(ShutdownAsked(round(grace_s * NS_PER_S)))
        try:
            await asyncio.wait_for(self._shutdown.wait(), grace_s + 10.0)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Snapshot and commit everything. Tell nothing afterwards."""
        self._timers.close()
        if not self.ended.done():
            self.take_snapshot()
            self.ended.set_result(None)
        async with self._reading:
            await self._journal.close()

    def _fire(self, timer: str) -> None:
        self.tell(TimerFired(timer))

    def _settle_soon(self) -> None:
        self._is_settling_soon = False
        self._journal.settle()

    def _refusal(self, request_id: str) -> Refuse:
        if self.ended.done():
            return Refuse(request_id, Reason.SHUTTING_DOWN, "The control process is ending.", _RETRY_AFTER_NS)
        failure = self._journal.failure
        why = failure.message if failure is not None else "It is behind with writing."
        message = f"The journal takes no new requests now. {why}"
        return Refuse(request_id, Reason.JOURNAL_UNAVAILABLE, message, _RETRY_AFTER_NS)

    def _fail(self, error: Exception, event: Event) -> None:
        """A defect: the machine's state cannot be trusted, or the event not be journaled. Restart recovers."""
        self._queue.clear()
        self._timers.close()
        self._report(f"The control machine failed on {type(event).__name__}", error)
        if not self.ended.done():
            self.ended.set_exception(error)
        for request_id, sink in list(self._sinks.items()):
            message = "The control process failed and is restarting."
            self._sinks.pop(request_id)
            sink.refuse(Refuse(request_id, Reason.CONTROL_RESTARTED, message, _RETRY_AFTER_NS))

    def _raise_if_failed(self) -> None:
        error = self.ended.exception() if self.has_failed else None
        if error is not None:
            raise error

    def _report(self, message: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})
