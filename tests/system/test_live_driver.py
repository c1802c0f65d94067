"""The live driver in one process: order, re-entrancy, acknowledgement, usage, full disks, an orderly end."""

import asyncio
import shutil
import sqlite3
import time
from pathlib import Path

import msgspec
import pytest

from baseload.domain.actions import Dispatch, Refuse
from baseload.domain.errors import ControlError, JournalError, Reason
from baseload.domain.events import (
    DispatchFailed,
    FirstByteSent,
    KeyCreated,
    ModelPut,
    RequestFinished,
)
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.tenant import Key, KeyLimits
from baseload.domain.units import NS_PER_MS
from baseload.domain.work import Endpoint, Outcome, Request, TokenCounts
from baseload.live.datadir import find_running
from baseload.live.driver import LiveControl
from baseload.live.launcher import LauncherOptions
from baseload.live.recovery import recover
from baseload.live.run import ControlOptions, open_offline, start_control
from baseload.live.store import FILE, Store
from baseload.live.timers import Timers
from baseload.live.writer import JournalOptions

pytestmark = pytest.mark.system
REMOTE = ModelSpec(name="m", source="http://127.0.0.1:9", admission=Admission(max_concurrency_per_replica=4))


def key(number: int = 1) -> Key:
    return Key(key_id=f"key_{number}", name=f"name {number}", secret_sha256=f"{number:064x}", created_ns=number)


def key_ids(control) -> list[str]:
    found = control.keys()
    return [each.key_id for each in found]


def request(number: int, model: str = "m") -> Request:
    return Request(f"req_{number:024x}", "key_1", model, Endpoint.CHAT, 12, 34, 0)


def ended(request_id: str, outcome: Outcome = Outcome.OK) -> RequestFinished:
    return RequestFinished(request_id, outcome, None, TokenCounts(12, 0, 5))


class Sink:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.actions: list[Dispatch | Refuse] = []

    def dispatch(self, action: Dispatch) -> None:
        self.actions.append(action)

    def refuse(self, action: Refuse) -> None:
        self.actions.append(action)


def options(folder: Path, **more: object) -> ControlOptions:
    return ControlOptions(launcher=LauncherOptions(cache_dir=folder), metered=False, **more)


def copy_of_killed(tmp_path: Path) -> None:
    """A copy taken in this order is what a kill leaves: the spool holds all that is settled."""
    shutil.copytree(tmp_path / "data" / "spool", tmp_path / "killed" / "spool")
    source = sqlite3.connect(tmp_path / "data" / FILE)
    target = sqlite3.connect(tmp_path / "killed" / FILE)
    source.backup(target)
    source.close()
    target.close()


@pytest.fixture
async def control(tmp_path):
    one = await start_control(tmp_path / "data", options=options(tmp_path))
    await one.acknowledge(KeyCreated(key()))
    await one.acknowledge(ModelPut(REMOTE))
    yield one
    assert await one.stop(60.0)


async def test_a_request_goes_through_and_stands_in_journal_and_usage(control):
    sink = Sink()
    control.open(request(1), sink)
    (dispatched,) = sink.actions
    assert (dispatched.url, dispatched.attempt) == ("http://127.0.0.1:9", 1)
    control.tell(FirstByteSent(dispatched.request_id))
    control.tell(ended(dispatched.request_id))
    assert control.open_requests == 0
    kinds = [row.kind for row in await control.events(limit=4)]
    assert kinds == ["arrived", "first_byte", "finished", "request"]
    (used,) = [row for row in await control.usage() if row.key_id]
    assert (used.key_name, used.requests, used.prompt_tokens, used.completion_tokens) == ("name 1", 1, 12, 5)


async def test_usage_includes_what_runs_and_counts_each_nanosecond_once(control):
    first, second = Sink(), Sink()
    control.open(request(1), first)
    control.open(request(2), second)
    control.tell(ended(request(1).request_id))
    before = control.status()
    rows = await control.usage()
    after = control.status()
    used = sum(row.useful_ns + row.idle_ns + row.cold_ns for row in rows)
    (low,), (high,) = ([r.cold_ns + r.idle_ns + r.useful_ns for r in one.replicas] for one in (before, after))
    assert low <= used <= high
    assert sum(row.requests for row in rows) == 1
    control.tell(ended(request(2).request_id))


async def test_a_sink_that_tells_at_once_does_not_reenter_the_machine(control):
    order = []

    class Failing(Sink):
        def dispatch(self, action: Dispatch) -> None:
            super().dispatch(action)
            order.append(("begin", action.attempt))
            control.tell(DispatchFailed(action.request_id, action.replica_id, Reason.WORKER_ERROR))
            order.append(("end", action.attempt))

    sink = Failing()
    control.open(request(1), sink)
    assert order[:2] == [("begin", 1), ("end", 1)]
    rows = [row.kind for row in await control.events(limit=1000)]
    assert rows.index("arrived") < rows.index("dispatch_failed")
    control.tell(ended(request(1).request_id, Outcome.CANCELLED))


async def test_a_sink_that_raises_is_reported_and_counts_as_a_failed_dispatch(control):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    class Broken(Sink):
        def dispatch(self, action: Dispatch) -> None:
            super().dispatch(action)
            raise RuntimeError("a defect in the gateway")

    control.open(request(1), Broken())
    assert "a defect in the gateway" in str(reported[0]["exception"])
    (row,) = await control.events(kind="dispatch_failed", limit=1)
    assert "a defect in the gateway" in row.body["detail"]
    control.tell(ended(request(1).request_id, Outcome.CANCELLED))


async def test_an_unknown_model_is_refused_and_the_reason_is_journaled(control):
    sink = Sink()
    control.open(request(1, model="nothing"), sink)
    assert sink.actions[0].reason is Reason.UNKNOWN_MODEL
    assert control.open_requests == 0
    (row,) = await control.events(kind="request")
    assert row.body["reason"] == "model_not_found"


async def test_a_held_request_is_refused_when_its_deadline_timer_fires(tmp_path):
    control = await start_control(tmp_path / "data", options=options(tmp_path))
    await control.acknowledge(KeyCreated(key()))
    waits = ModelSpec(name="w", source="/nonexistent", admission=Admission(max_wait_ns=50 * NS_PER_MS))
    await control.acknowledge(ModelPut(waits))
    sink, refused = Sink(), asyncio.Event()
    sink.refuse = lambda action: (sink.actions.append(action), refused.set())
    control.open(request(1, model="w"), sink)
    async with asyncio.timeout(60):
        await refused.wait()
    assert sink.actions[-1].reason in (Reason.DEADLINE, Reason.MODEL_UNAVAILABLE)
    await control.stop(1.0)


async def test_what_was_acknowledged_is_on_stable_storage(control, tmp_path):
    await control.acknowledge(KeyCreated(key(7)))
    other = sqlite3.connect(tmp_path / "data" / FILE)
    assert other.execute("SELECT count(*) FROM journal WHERE subject = 'key_7'").fetchone() == (1,)
    other.close()


async def test_what_cannot_be_written_changes_nothing(control, tmp_path):
    huge = msgspec.structs.replace(key(8), limits=KeyLimits(requests_per_minute=10**24))
    with pytest.raises(OverflowError):
        await control.acknowledge(KeyCreated(huge))
    assert key_ids(control) == ["key_1"]
    await control.acknowledge(KeyCreated(key(9)))
    await control.stop(1)
    async with open_offline(tmp_path / "data") as again:  # no gap in the journal
        assert key_ids(again) == ["key_1", "key_9"]


async def test_an_event_that_cannot_be_written_ends_the_control_and_leaves_no_gap(control, tmp_path):
    asyncio.get_running_loop().set_exception_handler(lambda _, context: None)
    control.tell(KeyCreated(msgspec.structs.replace(key(8), created_ns=10**24)))
    assert isinstance(control.ended.exception(), OverflowError)
    control.tell(KeyCreated(key(9)))  # too late: the state is not to be trusted
    await control.stop(0)
    async with open_offline(tmp_path / "data") as again:
        assert key_ids(again) == ["key_1"]


async def test_a_full_database_refuses_new_work_and_goes_on_when_there_is_room(control, monkeypatch):
    monkeypatch.setattr("baseload.live.writer._RETRY_S", 0.02)
    running, refused = Sink(), Sink()
    control.open(request(1), running)
    store = control._journal._store
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="full"):
        for number in range(100, 400):  # until the last page is full
            await control.acknowledge(KeyCreated(key(number)))
    control.open(request(2), refused)
    assert refused.actions[0].reason is Reason.JOURNAL_UNAVAILABLE
    assert "full" in refused.actions[0].message
    control.tell(ended(request(1).request_id))  # what runs goes on
    control.settle()
    store._db.execute("PRAGMA max_page_count = 1000000")
    async with asyncio.timeout(60):
        while control.journal_failure is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    again = Sink()
    control.open(request(3), again)
    assert isinstance(again.actions[0], Dispatch)
    control.tell(ended(request(3).request_id))
    assert sum(row.requests for row in await control.usage()) == 2


async def test_a_full_spool_refuses_new_work_and_goes_on_when_there_is_room(control, tmp_path):
    await control.sync()
    control._journal._spool._give_up_segment()
    segment = tmp_path / "data" / "spool" / f"{control.seq + 1:020d}.spool"
    segment.symlink_to("/dev/full")
    control.open(request(1), Sink())
    control.settle()
    refused = Sink()
    control.open(request(2), refused)
    assert refused.actions[0].reason is Reason.JOURNAL_UNAVAILABLE
    segment.unlink()
    control.settle()
    again = Sink()
    control.open(request(3), again)
    assert isinstance(again.actions[0], Dispatch)
    for number in (1, 3):
        control.tell(ended(request(number).request_id))


async def test_a_writer_that_lags_refuses_new_work(tmp_path):
    slow = JournalOptions(max_pending=5, group_s=3_600)
    control = await start_control(tmp_path / "data", options=options(tmp_path, journal=slow))
    await control.acknowledge(ModelPut(REMOTE))
    await control.acknowledge(KeyCreated(key()))
    seen = []
    for number in range(10):
        sink = Sink()
        control.open(request(number), sink)
        seen += [action.reason for action in sink.actions if isinstance(action, Refuse)]
    assert Reason.JOURNAL_UNAVAILABLE in seen
    await control.sync()
    sink = Sink()
    control.open(request(99), sink)
    assert not sink.actions or sink.actions[0].reason is not Reason.JOURNAL_UNAVAILABLE
    for number in (*range(10), 99):
        control.tell(ended(request(number).request_id, Outcome.CANCELLED))
    await control.stop(1.0)


async def test_replay_gives_the_same_state_from_any_snapshot_on(tmp_path):
    """A killed process leaves a directory; recovery from it equals the state that was lost."""
    control = await start_control(tmp_path / "data", options=options(tmp_path, snapshot_every=40))
    for number in range(1, 4):
        await control.acknowledge(KeyCreated(key(number)))
    await control.acknowledge(ModelPut(REMOTE))
    for number in range(60):
        control.open(request(number), Sink())
        if number % 3:
            control.tell(FirstByteSent(request(number).request_id))
            control.tell(ended(request(number).request_id))
        if number % 20 == 7:
            await control.sync()
    control.settle()
    copy_of_killed(tmp_path)
    expected, seq = control._machine.snapshot(), control.seq
    store = Store(tmp_path / "killed" / FILE)
    store.open()
    recovered = recover(store, tmp_path / "killed" / "spool", seed=0, policy_version="?")
    assert (recovered.seq, recovered.machine.snapshot()) == (seq, expected)
    assert 0 < recovered.replayed < seq
    store._db.execute("DELETE FROM snapshot")
    again = recover(store, tmp_path / "killed" / "spool", seed=control.status().seed, policy_version="1")
    assert again.replayed == seq
    assert again.machine.snapshot() == expected
    store.close()
    for number in range(0, 60, 3):
        control.tell(ended(request(number).request_id))
    assert await control.stop(60.0)


async def test_a_fault_of_the_machine_ends_control_without_journaling_the_event(tmp_path):
    control = await start_control(tmp_path / "data", options=options(tmp_path))
    await control.acknowledge(KeyCreated(key()))
    seq = control.seq
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def broken(now_ns: int, event: object) -> list[object]:
        raise AssertionError("an invariant")

    control._step = broken
    with pytest.raises(AssertionError, match="an invariant"):
        await control.acknowledge(KeyCreated(key(2)))
    sink = Sink()
    control.open(request(1), sink)
    assert isinstance(sink.actions[0], Refuse)
    assert control.ended.exception() is not None
    assert "KeyCreated" in reported[0]["message"]
    await control.stop(0.0)
    async with open_offline(tmp_path / "data") as later:
        assert later.seq == seq
        assert [one.key_id for one in tuple(later.keys())] == ["key_1"]


async def test_two_controls_do_not_share_a_directory(tmp_path):
    control = await start_control(tmp_path / "data", options=options(tmp_path))
    with pytest.raises(ControlError, match="pid") as caught:
        await start_control(tmp_path / "data", options=options(tmp_path))
    assert "--data-dir" in caught.value.hint
    with pytest.raises(ControlError):
        async with open_offline(tmp_path / "data"):
            pass
    assert find_running(tmp_path / "data") is None
    control.announce("http://127.0.0.1:1")
    assert find_running(tmp_path / "data").url == "http://127.0.0.1:1"
    await control.stop(1.0)
    assert find_running(tmp_path / "data") is None
    assert not (tmp_path / "data" / "control.json").exists()


async def test_administration_after_a_power_loss_does_not_bill_the_time_without_power(tmp_path):
    idle = LauncherOptions(cache_dir=tmp_path, command=lambda spec, files: ["/bin/sleep", "600"])
    control = await start_control(tmp_path / "data", options=ControlOptions(launcher=idle, metered=False))
    await control.acknowledge(ModelPut(ModelSpec(name="e", source="/nonexistent", scaling=Scaling(min_replicas=1))))
    copy_of_killed(tmp_path)
    await control.stop(1.0)

    def times(later: LiveControl) -> list[tuple[str, int]]:
        return [(replica.replica_id, replica.cold_ns) for replica in later.status().replicas]

    async with open_offline(tmp_path / "killed") as later:
        known = times(later)
        assert len(known) == 1
        billed = [row.cold_ns for row in await later.usage()]
        assert billed == [known[0][1]], "to the instant last known, not to now"
        await later.acknowledge(KeyCreated(key(2)))
        await later.acknowledge(ModelPut(REMOTE))
        assert times(later) == known
    async with open_offline(tmp_path / "killed") as later:
        await later.acknowledge(KeyCreated(key(3)))
        assert times(later) == known
        assert [row.cold_ns for row in await later.usage()] == billed
    again = await start_control(tmp_path / "killed", options=ControlOptions(launcher=idle, metered=False))
    rows = await again.events(kind="replica", limit=100)
    (last,) = [row.body for row in rows if row.body["final"]]
    assert (last["replica_id"], last["to_ns"] - last["from_ns"]) == (known[0][0], last["cold_ns"])
    assert sum(row.body["cold_ns"] for row in rows if row.body["replica_id"] == known[0][0]) == known[0][1]
    await again.stop(1.0)


async def test_offline_administration_starts_nothing_and_is_there_at_the_next_start(tmp_path):
    eager = ModelSpec(name="e", source="/nonexistent", scaling=Scaling(min_replicas=1))
    async with open_offline(tmp_path / "data") as control:
        await control.acknowledge(KeyCreated(key()))
        await control.acknowledge(ModelPut(eager))
        assert control.status().replicas == ()
        assert [row.kind for row in await control.events(kind="key_created")] == ["key_created"]
    async with open_offline(tmp_path / "data") as control:
        assert [one.name for one in control.models()] == ["e"]
        assert await control.usage() == []
    quick = LauncherOptions(cache_dir=tmp_path, command=lambda spec, files: ["/bin/false"])
    control = await start_control(tmp_path / "data", options=ControlOptions(launcher=quick, metered=False))
    assert [one.key_id for one in tuple(control.keys())] == ["key_1"]
    rows = await control.events(limit=1000)
    starts = [row.seq for row in rows if row.kind == "control_started"]
    workers = [row.seq for row in rows if row.kind == "worker_started"]
    assert len(starts) == 1
    assert workers
    assert min(workers) > starts[0]
    await control.stop(1.0)


async def test_the_same_seed_is_kept_over_restarts(tmp_path):
    for seed in (11, 99):
        control = await start_control(tmp_path / "data", options=options(tmp_path, seed=seed))
        assert control.status().seed == 11
        (row,) = await control.events(kind="control_started", limit=1)
        assert row.body["seed"] == 11
        await control.stop(0.0)


async def test_timers_fire_in_order_move_and_are_cancelled():
    fired, done = [], asyncio.Event()

    def fire(name: str) -> None:
        fired.append(name)
        if name == "last":
            done.set()

    now = time.time_ns
    timers = Timers(now_ns=now, fire=fire)
    start = now()
    timers.set("last", start + 60 * NS_PER_MS)
    timers.set("b", start + 20 * NS_PER_MS)
    timers.set("a", start + 10 * NS_PER_MS)
    timers.set("moved", start)
    timers.set("moved", start + 30 * NS_PER_MS)
    timers.set("cancelled", start + 5 * NS_PER_MS)
    timers.cancel("cancelled")
    for _ in range(500):
        timers.set("often", start + 40 * NS_PER_MS)
    async with asyncio.timeout(60):
        await done.wait()
    assert fired == ["a", "b", "moved", "often", "last"]
    timers.set("never", now())
    timers.close()
