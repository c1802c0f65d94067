"""The SQLite file: journal, ledger entries, usage, snapshots. WAL, synchronous=FULL: a commit is on stable storage.

Rows are inserted many to a statement: the sqlite3 module takes the interpreter's lock anew for every statement, and
beside a busy event loop row-by-row inserts were measured at 530 µs a row against 2–17 µs this way.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.errors import JournalError
from baseload.domain.events import Event, KeyCreated
from baseload.domain.work import MIXED, Entry
from baseload.live.rollup import Rollup, Sums
from baseload.wire.journal import (
    FORMAT,
    Frame,
    decode_entry,
    decode_event,
    describe,
    encode_entry,
    label_of,
    seal,
    unseal,
)

_log = logging.getLogger("baseload.live")
T = TypeVar("T")

FILE = "baseload.db"
ENTRY_KINDS = frozenset({"request", "replica", "decision"})
_BATCH_SIZES = (1, 8, 64, 256, 512, 1024)
_PRUNE_ROWS = 10_000  # deleted in one transaction at most

_USAGE = """
CREATE TABLE IF NOT EXISTS usage (day TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL, tier TEXT NOT NULL,
    requests INTEGER NOT NULL, failed INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, useful_ns INTEGER NOT NULL,
    idle_ns INTEGER NOT NULL, cold_ns INTEGER NOT NULL, cost_nusd INTEGER NOT NULL, energy_uj INTEGER NOT NULL,
    energy_basis TEXT NOT NULL, PRIMARY KEY (day, key_id, model, tier)) WITHOUT ROWID
"""
_SCHEMA = f"""{_USAGE};
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS header (seq INTEGER NOT NULL, at_ns INTEGER NOT NULL, version TEXT NOT NULL,
    policy_version TEXT NOT NULL, seed TEXT NOT NULL, settings_sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, kind TEXT NOT NULL,
    subject TEXT NOT NULL, model TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS entry (seq INTEGER NOT NULL, n INTEGER NOT NULL, at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL, subject TEXT NOT NULL, model TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (seq, n))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_rare ON entry (kind, seq) WHERE kind <> 'request';
CREATE TABLE IF NOT EXISTS key_name (key_id TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshot (seq INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, body BLOB NOT NULL);
"""

_SUM_FIELDS = Sums.__struct_fields__[:-1]
_SUMS = ", ".join(Sums.__struct_fields__)
_ADD_UP = ", ".join(f"{name} = {name} + excluded.{name}" for name in _SUM_FIELDS)
_UPSERT_USAGE = (
    "INSERT INTO usage VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (day, key_id, model, tier) DO UPDATE SET "  # noqa: S608
    + _ADD_UP
    + ", energy_basis = CASE WHEN excluded.energy_uj = 0 OR energy_basis = excluded.energy_basis THEN energy_basis"
    + f" WHEN energy_uj = 0 THEN excluded.energy_basis ELSE '{MIXED}' END"
)


class Record(msgspec.Struct, frozen=True):
    """One stepped event with what it caused, on its way into the store."""

    seq: int
    at_ns: int
    event: Event
    body: bytes
    entries: Sequence[Entry]


class StoredSnapshot(NamedTuple):
    """A snapshot and where it stands."""

    seq: int
    at_ns: int
    body: bytes


class Store:
    """One connection to the file; belongs to one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = _connect(path)

    def open(self) -> None:
        """Create the tables, or check that this program can read them."""
        found = _guard(self._open, self.path)
        if found > FORMAT:
            raise JournalError(
                f"{self.path} has format {found}; this version reads up to {FORMAT}.",
                hint="Use the newer version of baseload that wrote it.",
            )

    def _open(self) -> int:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA wal_autocheckpoint=4000")
        self._db.execute("PRAGMA journal_size_limit=67108864")
        self._db.execute("PRAGMA busy_timeout=10000")
        found = self._format()
        if found <= 1 and self._has_usage_without_classes():
            self._tell_classes_apart()
        if found <= FORMAT:
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('format', ?)", (str(FORMAT),))
        return found

    def _format(self) -> int:
        """The format of what is stored; 0: nothing is."""
        if self._db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone() is None:
            return 0
        row = self._db.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        return int(row[0]) if row else 0

    def _has_usage_without_classes(self) -> bool:
        columns = [name for (name,) in self._db.execute("SELECT name FROM pragma_table_info('usage')")]
        return bool(columns) and "tier" not in columns

    def _tell_classes_apart(self) -> None:
        """From format 1, whose usage had no class of service, in one transaction; what it counted stands under ""."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("ALTER TABLE usage RENAME TO usage_1")
            self._db.execute(_USAGE)
            self._db.execute(f"INSERT INTO usage SELECT day, key_id, model, '', {_SUMS} FROM usage_1")  # noqa: S608
            self._db.execute("DROP TABLE usage_1")
            self._db.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def commit(self, records: Sequence[Record], snapshots: Sequence[StoredSnapshot] = ()) -> None:
        """Write all in one transaction; on return it is on stable storage. sqlite3.Error: nothing is.

        A seq that is there already is an error, so nothing can be written twice.
        """
        journal: list[object] = []
        entries: list[object] = []
        rollup = Rollup()
        names: list[tuple[str, str]] = []
        for record in records:
            seq, at_ns, event = record.seq, record.at_ns, record.event
            kind, subject, model = label_of(event)
            journal += (seq, at_ns, kind, subject, model, record.body)
            if type(event) is KeyCreated:
                names.append((event.key.key_id, event.key.name))
            for n, entry in enumerate(record.entries):
                kind, subject, model = label_of(entry)
                entries += (seq, n, at_ns, kind, subject, model, encode_entry(entry).decode())
                rollup.add(entry)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._insert("journal", 6, journal)
            self._insert("entry", 7, entries)
            if rollup.rows:
                self._db.executemany(_UPSERT_USAGE, (key + _values(sums) for key, sums in rollup.rows.items()))
            if names:
                self._db.executemany("INSERT OR REPLACE INTO key_name VALUES (?, ?)", names)
            for one in snapshots:
                row = (one.seq, one.at_ns, seal(one.body))
                self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", row)
                self._db.execute(
                    "DELETE FROM snapshot WHERE seq NOT IN (SELECT seq FROM snapshot ORDER BY seq DESC LIMIT 2)"
                )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _insert(self, table: str, columns: int, values: list[object]) -> None:
        rows = len(values) // columns
        at = 0
        while at < rows:
            count = min(rows - at, _BATCH_SIZES[-1])
            size = next(size for size in _BATCH_SIZES if size >= count)
            some = values[at * columns : (at + count) * columns]
            some += [None] * (columns * (size - count))
            row = "(" + ",".join("?" * columns) + ")"
            # Rows of NULL fill the statement up to one of a few sizes, each prepared once.
            self._db.execute(
                f"INSERT INTO {table} SELECT * FROM (VALUES {','.join([row] * size)}) WHERE column1 IS NOT NULL",  # noqa: S608
                some,
            )
            at += count

    def write_header(
        self, seq: int, at_ns: int, *, version: str, policy_version: str, seed: int, settings_sha256: str
    ) -> None:
        """Note under what program, policy, seed and settings the events after `seq` are written."""
        row = (seq, at_ns, version, policy_version, str(seed), settings_sha256)
        _guard(lambda: self._db.execute("INSERT INTO header VALUES (?, ?, ?, ?, ?, ?)", row), self.path)

    def last(self) -> tuple[int, int]:
        """The last committed seq and its time; (0, 0) when there is none."""
        sql = "SELECT seq, at_ns FROM {0} WHERE seq = (SELECT max(seq) FROM {0})"
        rows = [
            _guard(lambda: self._db.execute(sql.format(table)).fetchone(), self.path)  # noqa: B023
            for table in ("journal", "snapshot")
        ]
        return max(((row[0], row[1]) for row in rows if row), default=(0, 0))

    def newest_snapshots(self) -> Iterator[StoredSnapshot]:
        """The readable snapshots, newest first; damaged ones are passed over."""
        sql = "SELECT seq, at_ns, body FROM snapshot ORDER BY seq DESC"
        for seq, at_ns, body in _guard(lambda: self._db.execute(sql).fetchall(), self.path):
            try:
                snapshot = unseal(body)
            except JournalError as error:  # the one before it, and the events since, give the same state
                _log.warning("The snapshot of record %d is passed over: %s", seq, error)
                continue
            yield StoredSnapshot(seq, at_ns, snapshot)

    def frames(self, after_seq: int) -> Iterator[Frame]:
        """The events after `after_seq`, oldest first."""
        sql = "SELECT seq, at_ns, body FROM journal WHERE seq > ? ORDER BY seq"
        cursor = _guard(lambda: self._db.execute(sql, (after_seq,)), self.path)
        while rows := _guard(lambda: cursor.fetchmany(5_000), self.path):
            for seq, at_ns, body in rows:
                yield Frame(seq, at_ns, body)

    def usage(self, rollup: Rollup, *, up_to_seq: int, from_day: str, to_day: str) -> dict[str, str]:
        """Add the usage as of `up_to_seq` to `rollup`; gives the keys' names by id."""
        later = Rollup()
        self._db.execute("BEGIN")
        try:
            columns = f"day, key_id, '', model, {_SUMS}, tier"  # in the order of UsageRow
            sql = f"SELECT {columns} FROM usage WHERE day >= ? AND day <= ?"  # noqa: S608
            for row in self._db.execute(sql, (from_day, to_day or "9999")):
                rollup.add_row(UsageRow(*row))
            for (body,) in self._db.execute("SELECT body FROM entry WHERE seq > ?", (up_to_seq,)):
                later.add(decode_entry(body))
            names = dict(self._db.execute("SELECT key_id, name FROM key_name"))
        finally:
            self._db.execute("COMMIT")
        for one in later.usage({}):
            if one.day >= from_day and one.day <= (to_day or "9999"):
                rollup.add_row(one, sign=-1)
        return names

    def rows(self, *, after_seq: int, limit: int, kind: str, model: str) -> list[JournalRow]:
        """The newest `limit` events and entries after `after_seq`, oldest first."""
        where = "seq > :after" + (" AND kind = :kind" if kind else "") + (" AND model = :model" if model else "")
        if kind in ENTRY_KINDS and kind != "request":
            where += " AND kind <> 'request'"  # lets SQLite use the index of what is rare
        order = "ORDER BY seq DESC, n DESC LIMIT :limit"
        events = f"SELECT seq, -1 AS n, at_ns, kind, subject, body FROM journal WHERE {where} {order}"  # noqa: S608
        entries = f"SELECT seq, n, at_ns, kind, subject, body FROM entry WHERE {where} {order}"  # noqa: S608
        if kind:  # the journal has no index by kind: its rows are many and rarely asked for so
            sql = entries if kind in ENTRY_KINDS else events
        else:
            sql = f"SELECT * FROM ({events}) UNION ALL SELECT * FROM ({entries}) {order}"  # noqa: S608
        values = {"after": after_seq, "limit": limit, "kind": kind, "model": model}
        found = _guard(lambda: self._db.execute(sql, values).fetchall(), self.path)
        return [
            JournalRow(seq, at_ns, of_kind, subject, describe(decode_event(body) if n < 0 else decode_entry(body)))
            for seq, n, at_ns, of_kind, subject, body in reversed(found)
        ]

    def prune(self, *, max_events: int, before_ns: int) -> int:
        """Delete old events and entries beyond both bounds' reach, one bounded step; gives the rows deleted.

        Usage stays, and so does everything a kept snapshot needs to be replayed from.
        """
        first, last = self._db.execute("SELECT min(seq), max(seq) FROM journal").fetchone()
        kept = self._db.execute("SELECT min(seq) FROM snapshot").fetchone()[0]
        if first is None or kept is None:
            return 0
        cut = min(first + _PRUNE_ROWS - 1, kept)
        if cut > last - max_events:
            at_ns = self._db.execute("SELECT max(at_ns) FROM journal WHERE seq <= ?", (cut,)).fetchone()[0]
            if at_ns is None or at_ns >= before_ns:
                return 0
        self._db.execute("BEGIN IMMEDIATE")
        try:
            deleted = self._db.execute("DELETE FROM journal WHERE seq <= ?", (cut,)).rowcount
            self._db.execute("DELETE FROM entry WHERE seq <= ?", (cut,))
        finally:
            self._db.execute("COMMIT")
        return deleted


def _connect(path: Path) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # for the owner's eyes
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    except (sqlite3.Error, OSError) as error:
        raise JournalError(f"{path} cannot be opened: {error}.", hint="Check that the folder is writable.") from error


def _values(sums: Sums) -> tuple[object, ...]:
    return msgspec.structs.astuple(sums)


def _guard(do: Callable[[], T], path: Path) -> T:
    try:
        return do()
    except sqlite3.Error as error:
        raise JournalError(
            f"{path} cannot be read or written: {error}.",
            hint="Check the disk and its free space; `baseload doctor` tests it.",
        ) from error
