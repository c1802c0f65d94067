"""The live journal: a spool that survives kill -9 at once, and SQLite that survives power loss a group commit later.

`append` buffers, `settle` hands the buffer to the operating system in one write, and a thread commits what has
gathered every `group_s` (at once where `sync` waits). When the disk is full or broken, nothing is thrown away and
nothing raises into a running request: `is_accepting` turns False, so that new work is refused, and writing is tried
again until it succeeds.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from baseload.domain.errors import JournalError
from baseload.domain.events import Event
from baseload.domain.work import Entry
from baseload.live.spool import Spool
from baseload.live.store import Record, Store, StoredSnapshot
from baseload.live.writer import JournalOptions, Writer
from baseload.wire.journal import encode_event


class LiveJournal:
    """What the driver journals through. Its methods belong to the event loop.

    `on_state` is called with the failure when writing begins to fail, and with None when it works again.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        *,
        options: JournalOptions,
        now_ns: Callable[[], int],
        on_state: Callable[[JournalError | None], None],
    ) -> None:
        self._store = store
        self._spool = spool
        self._options = options
        self._now_ns = now_ns
        self._on_state = on_state
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._failure: JournalError | None = None
        self._spool_has_failed = False
        self.committed_seq = 0

    def start(self, *, committed_seq: int) -> None:
        """Start the committing thread; `committed_seq` is what the store holds already."""
        self.committed_seq = committed_seq
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(
            self._store,
            options=self._options,
            now_ns=self._now_ns,
            post=self._post,
            on_committed=self._committed,
            on_failed=self._failed,
            committed_seq=committed_seq,
        )
        self._writer.start()

    @property
    def is_accepting(self) -> bool:
        """Whether new work may be taken: the disk takes what is written, and the writer keeps up."""
        return (
            self._failure is None and not self._spool_has_failed and self._writer.pending < self._options.max_pending
        )

    @property
    def failure(self) -> JournalError | None:
        """Why nothing can be written at this time, if so."""
        if self._spool_has_failed:
            return JournalError(
                f"The spool in {self._spool.folder} cannot be written: {self._spool.failure}.",
                hint="Free disk space; nothing is lost, and work goes on when it can be written.",
            )
        return self._failure

    @property
    def pending(self) -> int:
        """Events not yet on stable storage."""
        return self._writer.pending

    def append(self, seq: int, at_ns: int, event: Event, entries: Sequence[Entry]) -> None:
        """Buffer one event with the entries it caused."""
        body = encode_event(event)
        self._spool.append(seq, at_ns, body)
        self._writer.put(Record(seq, at_ns, event, body, entries))

    def settle(self) -> None:
        """Hand the buffer to the operating system. Never raises: see `is_accepting`."""
        self._spool.settle()
        has_failed = self._spool.failure is not None
        if has_failed is not self._spool_has_failed:
            self._spool_has_failed = has_failed
            self._on_state(self.failure)

    async def sync(self, seq: int) -> None:
        """Return once everything up to `seq` is on stable storage; raises JournalError where it cannot be written."""
        if self.committed_seq >= seq:
            return
        if self._failure is not None:
            raise self._failure
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((seq, future))
        self._writer.hurry()
        await future

    def snapshot(self, seq: int, at_ns: int, snapshot: bytes) -> None:
        """Store a snapshot with the next commit, after the events it rests on."""
        self._writer.put_snapshot(StoredSnapshot(seq, at_ns, snapshot))

    async def close(self) -> None:
        """Settle, commit everything, end the thread; JournalError where that cannot be done. The store stays open."""
        self.settle()
        self._writer.close()
        await asyncio.to_thread(self._writer.join)
        self._spool.close()
        self._spool.forget(self.committed_seq)
        if self._failure is not None:
            raise self._failure

    def _post(self, call: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: the process is ending without `close`
            return False
        return True

    def _committed(self, seq: int) -> None:
        self.committed_seq = seq
        self._spool.forget(seq)
        if self._spool_has_failed:
            self.settle()
        if self._failure is not None:
            self._failure = None
            self._on_state(self.failure)
        while self._waiters and self._waiters[0][0] <= seq:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)

    def _failed(self, error: JournalError) -> None:
        is_news = self._failure is None
        self._failure = error
        if is_news:
            self._on_state(error)
        while self._waiters:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_exception(error)
