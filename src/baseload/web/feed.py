"""The dashboard's pulse: samples the control machine each second, remembers some minutes, feeds every open page."""

import asyncio
import logging
from collections import deque
from datetime import UTC, datetime

import msgspec

from baseload.core.ports import Control, JournalRow, UsageRow
from baseload.domain.errors import JournalError
from baseload.domain.fleet import ReplicaState
from baseload.domain.status import ControlStatus
from baseload.domain.units import NS_PER_S
from baseload.web.snapshot import History, Snapshot, power_w, take, usd_per_hour

_log = logging.getLogger("baseload.web")
STEP_S = 1.0
MINUTE_NS = 60 * NS_PER_S
KEPT = 300  # samples: five minutes
RATE_WINDOW = 5  # samples over which tokens per second are averaged
USAGE_EVERY = 5  # ticks between two readings of the ledger, and only while a page is open
DECISIONS_SHOWN = 40
MAX_WATCHERS = 64


class Feed:
    """`open` starts the pulse; `snapshot` is what a page shows now; `next_tick` waits for the next one."""

    def __init__(self, control: Control, *, version: str, step_s: float = STEP_S) -> None:
        self._control = control
        self._version = version
        self._step_s = step_s
        self._samples: deque[tuple[float, int, int, float, float]] = deque(maxlen=KEPT)
        self._tokens: deque[tuple[int, int]] = deque(maxlen=RATE_WINDOW + 1)  # (now_ns, tokens ever seen)
        self._asked: deque[tuple[int, int]] = deque(maxlen=KEPT)  # (now_ns, requests ever asked)
        self._seen: dict[str, int] = {}  # replica → tokens at the last sample
        self._tokens_ever = 0
        self._wake_ns: dict[str, int] = {}
        self._usage: list[UsageRow] | None = None
        self._decisions: list[JournalRow] = []
        self._tick = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0

    def open(self) -> None:
        """Begin to sample, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dashboard-feed")

    async def close(self) -> None:
        """Stop sampling and let every waiting page go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._tick.set()

    async def next_tick(self) -> None:
        """Return after the next sample."""
        await self._tick.wait()

    async def snapshot(self) -> Snapshot:
        """What the page shows now."""
        if self._usage is None:
            await self._read_journal(with_usage=True)
        columns = list(zip(*self._samples, strict=True)) if self._samples else [()] * 5
        history = History(self._step_s, *columns)
        return take(
            self._control.status(),
            self._control.models(),
            version=self._version,
            history=history,
            requests_last_minute=self._asked[-1][1] - self._asked[0][1] if self._asked else 0,
            wake_ns=self._wake_ns,
            keys=self._control.keys(),
            usage=self._usage,
            decisions=self._decisions,
        )

    async def encoded(self) -> bytes:
        """The snapshot as JSON."""
        return msgspec.json.encode(await self.snapshot())

    async def _run(self) -> None:
        ticks = 0
        while True:
            self._sample(self._control.status())
            if self.watchers:
                try:
                    await self._read_journal(with_usage=ticks % USAGE_EVERY == 0)
                except JournalError as error:  # the page goes on with what it last read; the live figures are good
                    _log.warning("The dashboard cannot read the journal: %s", error)
            else:
                self._usage = None
            ticks += 1
            self._tick.set()
            self._tick.clear()
            await asyncio.sleep(self._step_s)

    def _sample(self, status: ControlStatus) -> None:
        seen: dict[str, int] = {}
        for replica in status.replicas:
            tokens = replica.sample.completion_tokens
            seen[replica.replica_id] = tokens
            self._tokens_ever += max(0, tokens - self._seen.get(replica.replica_id, 0))
            if replica.state is ReplicaState.READY and replica.cold_ns:
                self._wake_ns[replica.model] = replica.cold_ns
        self._seen = seen
        self._asked.append((status.now_ns, status.requests_total))
        while status.now_ns - self._asked[0][0] > MINUTE_NS:
            self._asked.popleft()
        self._tokens.append((status.now_ns, self._tokens_ever))
        (then_ns, then_tokens), (now_ns, now_tokens) = self._tokens[0], self._tokens[-1]
        elapsed_s = (now_ns - then_ns) / NS_PER_S
        rate = (now_tokens - then_tokens) / elapsed_s if elapsed_s > 0 else 0.0
        specs = {spec.name: spec for spec in self._control.models()}
        self._samples.append(
            (round(rate, 2), status.in_flight, status.queued, power_w(status), usd_per_hour(status, specs))
        )

    async def _read_journal(self, *, with_usage: bool) -> None:
        if with_usage:
            day = datetime.fromtimestamp(self._control.now_ns() / NS_PER_S, UTC).strftime("%Y-%m-%d")
            self._usage = await self._control.usage(from_day=day, to_day=day)
        self._decisions = await self._control.events(limit=DECISIONS_SHOWN, kind="decision")
