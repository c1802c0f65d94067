"""Recovery: the newest good snapshot, the journal's later events, then what only the spool still holds.

Every event goes through the machine again, and actions are ignored: what they did is done, or is put right when the
driver reports the workers it finds. Entries caused by journaled events stand in the store already; those of the
spool's tail are committed here, each once, because a seq can be committed only once.
"""

import logging
from pathlib import Path

from msgspec import Struct

from baseload.core.control import ControlMachine
from baseload.domain.actions import Record
from baseload.domain.errors import JournalError
from baseload.domain.events import Event
from baseload.domain.work import Entry
from baseload.live.spool import read_spool, segments
from baseload.live.store import Record as StoredRecord
from baseload.live.store import Store
from baseload.wire.journal import Frame, decode_event

_log = logging.getLogger("baseload.live")
_COMMIT_EVERY = 5_000


class Recovered(Struct):
    """The state of control as it was at its last settled event."""

    machine: ControlMachine
    seq: int
    at_ns: int
    is_new: bool  # nothing was there
    replayed: int = 0  # events since the snapshot
    warning: str = ""  # what had to be left out, in words

    def replay(self, at_ns: int, event: Event) -> list[Entry]:
        """Step one event again; gives the entries it caused."""
        actions = self.machine.step(at_ns, event)
        self.at_ns = max(self.at_ns, at_ns)
        self.replayed += 1
        return [action.entry for action in actions if isinstance(action, Record)]


def recover(store: Store, spool_folder: Path, *, seed: int, policy_version: str) -> Recovered:
    """Bring the machine back to its last settled event; afterwards the store holds everything and the spool is empty.

    `seed` and `policy_version` are those of a new machine, where there is no older one.
    """
    found = _newest_state(store, seed, policy_version)
    _replay_store(found, store)
    _replay_spool(found, store, spool_folder)
    found.is_new = found.seq == 0
    return found


def _newest_state(store: Store, seed: int, policy_version: str) -> Recovered:
    for stored in store.newest_snapshots():
        try:
            machine = ControlMachine.restore(stored.body)
        except Exception as error:  # whatever is wrong with it, an older one and the events since give the same state
            _log.warning("The snapshot of record %d cannot be read and is passed over: %s", stored.seq, error)
            continue
        return Recovered(machine, stored.seq, stored.at_ns, is_new=False)
    return Recovered(ControlMachine(seed=seed, policy_version=policy_version), 0, 0, is_new=True)


def _replay_store(found: Recovered, store: Store) -> None:
    for one in store.frames(found.seq):
        if one.seq != found.seq + 1:
            raise JournalError(
                f"The journal {store.path} jumps from record {found.seq} to {one.seq}; no snapshot covers the gap.",
                hint="Restore the data directory from a copy.",
            )
        _step(found, one)


def _replay_spool(found: Recovered, store: Store, folder: Path) -> None:
    frames, found.warning = read_spool(folder, after_seq=found.seq)
    for start in range(0, len(frames), _COMMIT_EVERY):
        records = []
        for one in frames[start : start + _COMMIT_EVERY]:
            event, entries = _step(found, one)
            records.append(StoredRecord(one.seq, one.at_ns, event, one.body, entries))
        store.commit(records)
    for path in segments(folder):
        path.unlink()


def _step(found: Recovered, one: Frame) -> tuple[Event, list[Entry]]:
    event = decode_event(one.body)
    try:
        entries = found.replay(one.at_ns, event)
    except Exception as error:
        raise JournalError(
            f"Record {one.seq} of the journal cannot be replayed: {type(error).__name__}: {error}.",
            hint="Use the version that wrote it, and stop it with Ctrl-C once before going to another.",
        ) from error
    found.seq = one.seq
    return event, entries
