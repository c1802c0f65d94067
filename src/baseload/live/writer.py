"""The thread that commits the journal: what has gathered every so often, at once when somebody waits for it."""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from baseload.domain.errors import JournalError
from baseload.domain.units import NS_PER_DAY
from baseload.live.store import Record, Store, StoredSnapshot

_RETRY_S = 1.0
_MAX_BATCH = 8_192
_PRUNE_EVERY_COMMITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalOptions:
    """Bounds of the journal. `max_pending`: events not yet on stable storage, beyond which new work is refused."""

    group_s: float = 0.1
    max_pending: int = 65_536
    max_events: int = 5_000_000  # kept in the journal table with their entries; older ones go, their usage stays
    max_age_days: int = 90


class Writer:
    """Takes records and snapshots from the event loop, commits them in order, and posts the outcome back.

    `on_committed(seq)` and `on_failed(error)` are called through `post`, which runs them in the event loop and gives
    False when there is none any more. A commit that fails is tried again each second, and nothing is dropped.
    """

    def __init__(
        self,
        store: Store,
        *,
        options: JournalOptions,
        now_ns: Callable[[], int],
        post: Callable[[Callable[[], None]], bool],
        on_committed: Callable[[int], None],
        on_failed: Callable[[JournalError], None],
        committed_seq: int,
    ) -> None:
        self._store = store
        self._options = options
        self._now_ns = now_ns
        self._post = post
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._committed_seq = committed_seq
        self._records: deque[Record] = deque()
        self._snapshots: deque[StoredSnapshot] = deque()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._closing = threading.Event()
        self._is_idle = True
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    # -- called in the event loop --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def pending(self) -> int:
        """Records not yet taken for a commit."""
        return len(self._records)

    def put(self, record: Record) -> None:
        """Hand over one record."""
        self._records.append(record)
        if self._is_idle:
            self._is_idle = False
            self._wake.set()

    def put_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Hand over a snapshot; it is committed with or after the records it rests on."""
        self._snapshots.append(snapshot)
        self._wake.set()

    def hurry(self) -> None:
        """Commit without waiting for company: somebody waits for it."""
        self._urgent.set()

    def close(self) -> None:
        """Ask for everything to be committed and the thread to end; see `join`."""
        self._closing.set()
        self._urgent.set()
        self._wake.set()

    def join(self) -> None:
        """Wait for the thread's end. Blocks: not for the event loop."""
        self._thread.join()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        commits = 0
        while self._gather():
            batch = [self._records.popleft() for _ in range(min(len(self._records), _MAX_BATCH))]
            last_seq = batch[-1].seq if batch else self._committed_seq
            snapshots: list[StoredSnapshot] = []
            while self._snapshots and self._snapshots[0].seq <= last_seq:
                snapshots.append(self._snapshots.popleft())
            if not self._commit(batch, snapshots):
                return
            self._committed_seq = last_seq
            if not self._post(lambda seq=last_seq: self._on_committed(seq)):  # type: ignore[misc]
                return
            commits += 1
            if snapshots or commits % _PRUNE_EVERY_COMMITS == 0:
                self._prune()

    def _gather(self) -> bool:
        while not self._records and not self._snapshots:
            if self._closing.is_set():
                return False
            self._wake.clear()
            self._is_idle = True
            if not self._records and not self._snapshots and not self._closing.is_set():
                self._wake.wait()
        self._is_idle = False
        self._urgent.wait(self._options.group_s)
        if not self._closing.is_set():
            self._urgent.clear()
        return True

    def _commit(self, batch: list[Record], snapshots: list[StoredSnapshot]) -> bool:
        while True:
            try:
                self._store.commit(batch, snapshots)
            except Exception as error:  # whatever it is, the records stay, and people are told
                failure = JournalError(
                    f"The journal {self._store.path} cannot be written: {error}.",
                    hint="Free disk space; nothing is lost, and work goes on when it can be written.",
                )
                if not self._post(lambda failure=failure: self._on_failed(failure)):  # type: ignore[misc]
                    return False
                if self._closing.wait(_RETRY_S):
                    return False
            else:
                return True

    def _prune(self) -> None:
        options = self._options
        try:
            self._store.prune(
                max_events=options.max_events, before_ns=self._now_ns() - options.max_age_days * NS_PER_DAY
            )
        except sqlite3.Error:
            # An empty commit tells whether the disk works, reports it if not, and waits until it does.
            self._commit([], [])
