"""The SQLite store: once and only once, sums that add up, bounded growth."""

import sqlite3

import pytest

from baseload.core.ports import UsageRow
from baseload.domain.errors import JournalError
from baseload.domain.events import KeyCreated, RequestArrived, TimerFired
from baseload.domain.tenant import Key
from baseload.domain.work import (
    Decision,
    Endpoint,
    Outcome,
    PhaseTimes,
    ReplicaEntry,
    Request,
    RequestEntry,
    Tier,
    TokenCounts,
)
from baseload.live.rollup import Rollup
from baseload.live.store import Record, Store, StoredSnapshot
from baseload.wire.journal import encode_entry, encode_event

NOON_NS = 1_763_640_000 * 10**9  # 2025-11-20T12:00:00Z


@pytest.fixture
def store(tmp_path):
    one = Store(tmp_path / "baseload.db")
    one.open()
    yield one
    one.close()


def record(seq: int, event=None, entries=(), at_ns: int = 0) -> Record:
    event = event or TimerFired(f"t{seq}")
    return Record(seq, at_ns or seq, event, encode_event(event), entries)


def request_entry(
    number: int, *, outcome: Outcome = Outcome.OK, ended_ns: int = NOON_NS, basis="modelled", tier=Tier.DEFAULT
):
    return RequestEntry(
        request_id=f"req_{number}",
        key_id="key_1",
        model="m",
        endpoint=Endpoint.CHAT,
        replica_id="r_1",
        outcome=outcome,
        reason=None,
        arrived_ns=ended_ns - 5,
        dispatched_ns=ended_ns - 4,
        first_byte_ns=ended_ns - 3,
        ended_ns=ended_ns,
        attempts=1,
        tokens=TokenCounts(10, 2, 5),
        phases=PhaseTimes(),
        useful_ns=100 + number,
        cost_nusd=7,
        energy_uj=11,
        energy_basis=basis,
        tier=tier,
    )


def replica_entry() -> ReplicaEntry:
    return ReplicaEntry("r_1", "m", NOON_NS, NOON_NS + 30, 10, 20, 0, 0, False, 0.1, 3, 4, 5, 6, "modelled")


def usage(store: Store, up_to_seq: int, from_day: str = "", to_day: str = "") -> list[UsageRow]:
    rollup = Rollup()
    names = store.usage(rollup, up_to_seq=up_to_seq, from_day=from_day, to_day=to_day)
    return rollup.usage(names)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 65, 300, 1024, 1500])
def test_any_number_of_records_is_written_and_read_back(store, count):
    store.commit([record(seq) for seq in range(1, count + 1)])
    assert [one.seq for one in store.frames(0)] == list(range(1, count + 1))
    assert store.last() == (count, count)


def test_nothing_is_written_twice_and_a_failed_commit_writes_nothing(store):
    store.commit([record(1, entries=[request_entry(1)])])
    with pytest.raises(sqlite3.IntegrityError):
        store.commit([record(2, entries=[request_entry(2)]), record(1, entries=[request_entry(1)])])
    assert store.last()[0] == 1
    assert [row.requests for row in usage(store, 9)] == [1]


def test_usage_adds_up_requests_and_replica_time(store):
    key = Key(key_id="key_1", name="Ada", secret_sha256="0" * 64, created_ns=1)
    store.commit([record(1, KeyCreated(key)), record(2, entries=[request_entry(1), replica_entry()])])
    store.commit([record(3, entries=[request_entry(2, outcome=Outcome.FAILED, basis="rapl")])])
    idle, used = usage(store, 3)
    assert (idle.key_id, idle.idle_ns, idle.cold_ns, idle.cost_nusd, idle.energy_uj) == ("", 20, 10, 7, 11)
    assert used == UsageRow("2025-11-20", "key_1", "Ada", "m", 2, 1, 20, 4, 10, 203, 0, 0, 14, 22, "mixed", "default")


def test_usage_as_of_an_earlier_seq_leaves_later_entries_out(store):
    store.commit([record(seq, entries=[request_entry(seq)]) for seq in (1, 2, 3)])
    assert [row.useful_ns for row in usage(store, 2)] == [101 + 102]
    assert usage(store, 0) == []


def test_usage_tells_classes_of_service_apart(store):
    tiers = [Tier.FLEX, Tier.PRIORITY, Tier.FLEX]
    store.commit([record(seq, entries=[request_entry(seq, tier=tier)]) for seq, tier in enumerate(tiers, start=1)])
    assert [(row.tier, row.requests) for row in usage(store, 3)] == [("flex", 2), ("priority", 1)]
    assert [(row.tier, row.requests) for row in usage(store, 2)] == [("flex", 1), ("priority", 1)]
    assert [row.body["tier"] for row in store.rows(after_seq=0, limit=9, kind="request", model="")] == tiers


FORMAT_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entry (seq INTEGER NOT NULL, n INTEGER NOT NULL, at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL, subject TEXT NOT NULL, model TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (seq, n))
    WITHOUT ROWID;
CREATE TABLE usage (day TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, failed INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, useful_ns INTEGER NOT NULL,
    idle_ns INTEGER NOT NULL, cold_ns INTEGER NOT NULL, cost_nusd INTEGER NOT NULL, energy_uj INTEGER NOT NULL,
    energy_basis TEXT NOT NULL, PRIMARY KEY (day, key_id, model)) WITHOUT ROWID;
INSERT INTO usage VALUES ('2025-11-20', 'key_1', 'm', 2, 1, 20, 4, 10, 203, 0, 0, 14, 22, 'mixed');
INSERT INTO usage VALUES ('2025-11-20', '', 'm', 0, 0, 0, 0, 0, 0, 20, 10, 7, 11, 'modelled');
"""


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_ledger_of_format_1_is_opened_with_all_it_counted(tmp_path, is_marked):
    path = tmp_path / "baseload.db"
    old = sqlite3.connect(path)
    old.executescript(FORMAT_1)
    if is_marked:
        old.execute("INSERT INTO meta VALUES ('format', '1')")
        entry = b'{"type":"request",' + encode_entry(request_entry(1)).partition(b",")[2]
        old.execute("INSERT INTO entry VALUES (1, 0, 1, 'request', 'req_1', 'm', ?)", (entry.decode(),))
    old.commit()
    old.close()
    for _ in range(2):  # moved once, and opened again as it is
        store = Store(path)
        store.open()
        idle, used = usage(store, 1)
        assert used == UsageRow("2025-11-20", "key_1", "", "m", 2, 1, 20, 4, 10, 203, 0, 0, 14, 22, "mixed", "")
        assert (idle.key_id, idle.idle_ns, idle.cold_ns, idle.tier) == ("", 20, 10, "")
        store.close()
    store = Store(path)
    store.open()
    store.commit([record(2, entries=[request_entry(2, tier=Tier.FLEX)])])
    assert [(row.key_id, row.tier, row.requests) for row in usage(store, 2)] == [
        ("", "", 0), ("key_1", "", 2), ("key_1", "flex", 1),
    ]  # fmt: skip
    rows = store.rows(after_seq=0, limit=9, kind="request", model="")
    assert [row.body["tier"] for row in rows] == ["default", "flex"][1 - is_marked :]
    store.close()


def test_usage_by_day(store):
    day = 86_400 * 10**9
    store.commit([record(seq, entries=[request_entry(seq, ended_ns=NOON_NS + seq * day)]) for seq in (1, 2, 3)])
    assert [row.day for row in usage(store, 3, "2025-11-22", "2025-11-22")] == ["2025-11-22"]
    assert [row.day for row in usage(store, 3, "2025-11-22")] == ["2025-11-22", "2025-11-23"]


def test_rows_by_kind_and_model_newest_but_in_order(store):
    decision = Decision(at_ns=1, what="wake", subject="r_1", model="m", why="a request waits")
    arrived = RequestArrived(Request("req_1", "key_1", "m", Endpoint.CHAT, 1, 1, 0))
    store.commit([record(1), record(2, arrived, [decision]), record(3, entries=[request_entry(1)]), record(4)])

    def kinds(**query):
        wanted = {"after_seq": 0, "limit": 100, "kind": "", "model": "", **query}
        return [(row.seq, row.kind) for row in store.rows(**wanted)]

    assert kinds() == [(1, "timer"), (2, "arrived"), (2, "decision"), (3, "timer"), (3, "request"), (4, "timer")]
    assert kinds(limit=2) == [(3, "request"), (4, "timer")]
    assert kinds(after_seq=3) == [(4, "timer")]
    assert kinds(kind="timer", limit=2) == [(3, "timer"), (4, "timer")]
    assert kinds(kind="decision") == [(2, "decision")]
    assert kinds(model="m") == [(2, "arrived"), (2, "decision"), (3, "request")]


def test_damaged_snapshots_are_passed_over_and_two_are_kept(store, tmp_path):
    for seq in (1, 2, 3):
        store.commit([record(seq)], [StoredSnapshot(seq, seq, b"state %d" % seq)])
    assert [(one.seq, one.body) for one in store.newest_snapshots()] == [(3, b"state 3"), (2, b"state 2")]
    other = sqlite3.connect(tmp_path / "baseload.db")
    other.execute("UPDATE snapshot SET body = x'00112233445566' WHERE seq = 3")
    other.commit()
    other.close()
    assert [one.seq for one in store.newest_snapshots()] == [2]


def test_old_events_go_but_not_what_a_snapshot_needs_nor_usage(store):
    store.commit([record(seq, entries=[request_entry(seq)]) for seq in range(1, 101)])
    assert store.prune(max_events=10, before_ns=0) == 0  # no snapshot to recover from without them
    store.commit([], [StoredSnapshot(60, 60, b"s")])
    assert store.prune(max_events=1000, before_ns=0) == 0
    assert store.prune(max_events=10, before_ns=0) == 60
    assert next(store.frames(0)).seq == 61
    assert store.prune(max_events=10, before_ns=0) == 0
    assert [row.requests for row in usage(store, 100)] == [100]
    assert store.last()[0] == 100


def test_events_older_than_the_age_go(store):
    store.commit([record(seq) for seq in range(1, 11)], [StoredSnapshot(10, 10, b"s")])
    assert store.prune(max_events=1000, before_ns=10) == 0
    assert store.prune(max_events=1000, before_ns=11) == 10
    assert store.last() == (10, 10)


def test_a_newer_format_is_refused(store, tmp_path):
    store._db.execute("UPDATE meta SET value = '999' WHERE name = 'format'")
    other = Store(tmp_path / "baseload.db")
    with pytest.raises(JournalError, match="format 999"):
        other.open()
    other.close()


def test_a_file_that_is_no_database_is_a_journal_error(tmp_path):
    (tmp_path / "baseload.db").write_bytes(b"this is not a database at all" * 100)
    store = Store(tmp_path / "baseload.db")
    with pytest.raises(JournalError, match="not a database"):
        store.open()
    store.close()
