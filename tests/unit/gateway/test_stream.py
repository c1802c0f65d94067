"""Events on their way through: the bytes are the same however they arrive, but for the usage chunk."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.domain.errors import Reason
from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.gateway.stream import LONGEST_EVENT_BYTES, EventStream, read_whole

TOKEN = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n'
FIRST = TOKEN % b""
TRICKY = TOKEN % b'\\"usage\\":{ [DONE] \\"error\\"'
USAGE = (
    b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
    b'"prompt_tokens_details":{"cached_tokens":2}},"baseload":{"queue_ns":1,"prefill_ns":2,"decode_ns":3}}\n\n'
)
DONE = b"data: [DONE]\n\n"
BODY = FIRST + TOKEN % b"a" + TRICKY + TOKEN % b"c"


@given(st.lists(st.integers(0, len(BODY + USAGE + DONE)), max_size=8), st.booleans())
def test_any_cut_gives_the_same_bytes(cuts, withhold):
    data = BODY + USAGE + DONE
    stream = EventStream(withhold_usage=withhold)
    places = [0, *sorted(cuts), len(data)]
    passed = b"".join([stream.feed(data[a:b]) for a, b in pairwise(places) if a < b])
    assert passed == (BODY if withhold else BODY + USAGE)
    assert stream.done
    assert not stream.failed
    assert stream.counts(99) == TokenCounts(prompt=7, cached_in=2, completion=3)
    assert stream.phases == PhaseTimes(1, 2, 3)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_carriage_returns(size):
    data = (BODY + USAGE + DONE).replace(b"\n", b"\r\n")
    stream = EventStream(withhold_usage=True)
    passed = b"".join([stream.feed(data[at : at + size]) for at in range(0, len(data), size)])
    assert passed.replace(b"\r\n", b"\n") == BODY
    assert stream.done
    assert stream.usage == TokenCounts(prompt=7, cached_in=2, completion=3)


def test_usage_in_a_chunk_with_choices_is_never_withheld():
    chunk = USAGE.replace(b'"choices":[]', b'"choices":[{"delta":{}}]')
    stream = EventStream(withhold_usage=True)
    assert stream.feed(FIRST + chunk) == FIRST + chunk
    assert stream.counts(0).completion == 3
    nulls = TOKEN.replace(b"}\n\n", b',"usage":null}\n\n') % b"a"
    assert stream.feed(nulls) == nulls


def test_tokens_are_counted_where_the_worker_could_not_say():
    stream = EventStream(withhold_usage=True)
    for _ in range(3):
        stream.feed(FIRST[:0] + TOKEN % b"a")
    assert stream.counts(12) == TokenCounts(prompt=12, completion=3)
    silent = EventStream(withhold_usage=True)
    silent.feed(b": ping\n\n")
    assert silent.counts(12) == TokenCounts()
    opened = EventStream(withhold_usage=True)
    opened.feed(FIRST + TOKEN % b"a")
    assert opened.counts(12).completion == 1


def test_an_error_event_is_seen_and_passed_on():
    event = b'data: {"error":{"message":"x"}}\n\n'
    stream = EventStream(withhold_usage=True)
    assert stream.feed(FIRST + event) == FIRST + event
    assert stream.failed
    assert not stream.done


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ('"invalid_value"', Reason.BAD_REQUEST),
        ('"context_length_exceeded"', Reason.CONTEXT_TOO_LONG),
        ("400", Reason.BAD_REQUEST),  # as vLLM has it
        ('"worker_error"', None),
        ('"invalid_api_key"', None),  # ours, not the client's
        ("500", None),
        ("null", None),
    ],
)
def test_whose_fault_an_error_is(code, fault):
    event = b'data: {"error":{"message":"x","code":%s}}\n\n' % code.encode()
    stream = EventStream(withhold_usage=True)
    stream.feed(event)
    assert stream.failed
    assert stream.fault is fault
    assert stream.error == event[6:-2]


def test_events_are_bounded():
    stream = EventStream(withhold_usage=True)
    with pytest.raises(ValueError, match="over"):
        for _ in range(LONGEST_EVENT_BYTES // (1 << 20) + 1):
            stream.feed(b"data: " + b"x" * (1 << 20))


def test_whole_answers():
    body = b'{"choices":[{}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'
    assert read_whole(body) == (TokenCounts(prompt=7, completion=3), PhaseTimes())
    assert read_whole(b"{}") == (TokenCounts(), PhaseTimes())
    for bad in (b"", b"[]", b'{"usage":5}'):
        with pytest.raises(ValueError):  # as msgspec's errors are
            read_whole(bad)
