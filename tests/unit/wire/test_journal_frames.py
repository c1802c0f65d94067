"""Frames of the journal: whole ones come back, torn and flipped ones are told from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.domain.errors import JournalError, Reason
from baseload.domain.events import (
    DispatchFailed,
    EnergyMeasured,
    KeyCreated,
    RequestArrived,
    RequestFinished,
    TimerFired,
    WorkerSampled,
)
from baseload.domain.fleet import WorkerSample
from baseload.domain.tenant import Key
from baseload.domain.work import Decision, Endpoint, Outcome, PhaseTimes, Request, TokenCounts
from baseload.wire import journal

REQUEST = Request("req_1", "key_1", "guide", Endpoint.CHAT, 12, 34, 0, True, 1, (1, 2**64 - 1))
EVENTS = [
    RequestArrived(REQUEST),
    RequestFinished("req_1", Outcome.FAILED, Reason.WORKER_LOST, TokenCounts(1, 2, 3), PhaseTimes(4, 5, 6)),
    DispatchFailed("req_1", "r_1", Reason.WORKER_LOST, "gone – weg"),
    WorkerSampled("r_1", WorkerSample(1, 2, float("inf"), 3, 4)),
    EnergyMeasured("r_1", 2**50, "rapl"),
    TimerFired("queue:guide"),
    KeyCreated(Key(key_id="key_1", name="a", secret_sha256="0" * 64, created_ns=7)),
]
bodies = st.lists(st.binary(max_size=60), max_size=12)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event):
    assert journal.decode_event(journal.encode_event(event)) == event


def test_a_foreign_body_is_a_journal_error():
    with pytest.raises(JournalError, match="cannot be read"):
        journal.decode_event(b"\x93\xa7unknown\x01\x02")


@given(bodies)
def test_frames_come_back_in_order(found):
    data = b"".join(journal.frame(seq, seq * 10, body) for seq, body in enumerate(found))
    frames, why = journal.read_frames(data)
    assert why == ""
    assert frames == [(seq, seq * 10, body) for seq, body in enumerate(found)]


@given(bodies.filter(bool), st.data())
def test_a_torn_end_loses_the_last_frame_only(found, data):
    whole = [journal.frame(seq, 1, body) for seq, body in enumerate(found)]
    cut = data.draw(st.integers(1, len(whole[-1]) - 1))
    frames, why = journal.read_frames(b"".join(whole)[:-cut])
    assert [one.body for one in frames] == found[:-1]
    assert "torn" in why


@given(bodies.filter(bool), st.data())
def test_a_flipped_bit_is_found_and_nothing_wrong_is_read(found, data):
    whole = bytearray(b"".join(journal.frame(seq, 1, body) for seq, body in enumerate(found)))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    frames, why = journal.read_frames(bytes(whole))
    assert why != ""
    assert [(one.seq, one.body) for one in frames] == list(enumerate(found))[: len(frames)]


def test_a_seal_shows_damage():
    sealed = journal.seal(b"state")
    assert journal.unseal(sealed) == b"state"
    for broken in (b"", sealed[:3], sealed[:-1], sealed[:-1] + b"x"):
        with pytest.raises(JournalError, match="damaged"):
            journal.unseal(broken)


def test_records_are_described_by_name_without_secrets():
    shown = journal.describe(EVENTS[1])
    assert shown["outcome"] == "failed"
    assert shown["tokens"] == {"prompt": 1, "cached_in": 2, "completion": 3}
    assert "0" * 64 not in str(journal.describe(EVENTS[-1]))


def test_subject_and_kind_of_events_and_entries():
    decision = Decision(at_ns=1, what="wake", subject="r_1", model="guide", why="a request waits")
    assert journal.label_of(decision) == ("decision", "r_1", "guide")
    assert journal.label_of(EVENTS[0]) == ("arrived", "req_1", "guide")
    assert journal.decode_entry(journal.encode_entry(decision)) == decision


def test_every_event_and_entry_has_a_subject():
    from typing import get_args

    from baseload.domain.events import Event
    from baseload.domain.work import Entry

    assert set(journal._SUBJECTS) == {*get_args(Event), *get_args(Entry)}
