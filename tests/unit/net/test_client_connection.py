"""The client's edge without a network: cuts, ends, stale connections, time bounds."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.net.connection import Call, Connection, Fault, Host

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
INFORMED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + LENGTH
UNTIL_EOF = b"HTTP/1.1 200 OK\r\n\r\nhello world"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


class Clock:
    """A loop's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def create_future(self):
        class Settable:
            def set_result(self, value: None) -> None:
                pass

        return Settable()


class Pool:
    """What a connection needs of the client."""

    keepalive_s = 30.0
    max_idle_per_host = 2
    max_header_bytes = 1000

    def __init__(self) -> None:
        self.loop = Clock()
        self.closed = False
        self.placed: list[tuple[Call, bool]] = []

    def place(self, call: Call, host: Host, *, fresh: bool = False) -> None:
        self.placed.append((call, fresh))


class Pipe(asyncio.Transport):
    """A transport that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = self.paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Heard:
    """A handler that remembers."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = 0
        self.faults: list[Fault] = []

    def on_headers(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers

    def on_body(self, chunk: bytes) -> None:
        assert chunk
        self.body += chunk

    def on_end(self) -> None:
        self.ended += 1

    def on_error(self, fault: Fault, detail: str) -> None:
        self.faults.append(fault)


class End:
    """One connection with one call on it."""

    def __init__(self, *, repeatable: bool = False, used: bool = False) -> None:
        self.pool = Pool()
        self.host = Host("http://h:1/v1")
        self.pipe = Pipe()
        self.connection = Connection(self.pool, self.host)
        self.connection.connection_made(self.pipe)
        self.heard = Heard()
        if used:
            self.begin()
            self.connection.data_received(LENGTH)
            assert self.host.idle.pop() is self.connection
        self.begin(repeatable)

    def begin(self, repeatable: bool = False) -> None:
        self.heard = Heard()
        self.call = Call(
            data=b"ask", handler=self.heard, repeatable=repeatable, first_byte_timeout_s=10, idle_timeout_s=5
        )
        self.connection.begin(self.call)

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.pipe.closed:
                self.connection.data_received(piece)

    def sweep(self, seconds: float) -> None:
        self.pool.loop.now += seconds
        self.connection.check_time(self.pool.loop.now)


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, INFORMED, UNTIL_EOF, EMPTY])
def test_every_split_gives_the_same_answer(answer):
    for cut in range(len(answer)):
        end = End()
        end.feed(*[piece for piece in (answer[:cut], answer[cut:]) if piece])
        if answer is UNTIL_EOF:
            assert end.heard.ended == 0
            end.connection.connection_lost(None)
        assert (end.heard.status, end.heard.ended, end.heard.faults) == (204 if answer is EMPTY else 200, 1, [])
        assert end.heard.body == (b"" if answer is EMPTY else b"hello world")
        assert end.call.done
        assert (end.connection in end.host.idle) is (answer is not UNTIL_EOF)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_noise_is_a_fault_not_an_exception(noise, cut):
    end = End()
    end.feed(*[piece for piece in (noise[:cut], noise[cut:]) if piece])
    if not end.pipe.closed:
        end.connection.connection_lost(None)
    assert len(end.heard.faults) + end.heard.ended == 1


def test_what_follows_an_answer_ends_the_connection():
    for extra in (b"x", LENGTH, b"HTTP/1.1 200 OK\r\n"):
        end = End()
        end.feed(LENGTH + extra)
        assert end.heard.body == b"hello world"
        assert end.heard.ended == 1
        assert end.pipe.closed
        assert end.host.idle == []
    later = End()
    later.feed(LENGTH, b"HTTP/1.1 200 OK\r\n")
    assert later.pipe.closed


def test_close_is_honoured():
    end = End()
    end.feed(LENGTH.replace(b"Content-Type: a/b", b"Connection: close"))
    assert end.heard.ended == 1
    assert end.pipe.closed


def test_truncated_answers_are_lost():
    for cut in range(1, len(CHUNKED)):
        end = End()
        end.feed(CHUNKED[:cut])
        end.connection.connection_lost(None)
        assert end.heard.faults == [Fault.LOST]
        assert end.heard.ended == 0


def test_stale_connection_is_retried_only_when_nothing_came():
    stale = End(repeatable=True, used=True)
    stale.connection.connection_lost(ConnectionResetError())
    assert stale.pool.placed == [(stale.call, True)]
    assert stale.heard.faults == []
    fresh = End(repeatable=True)
    fresh.call.fresh = True
    fresh.connection.connection_lost(None)
    assert fresh.heard.faults == [Fault.LOST]
    unsafe = End(repeatable=False, used=True)
    unsafe.connection.connection_lost(None)
    assert unsafe.heard.faults == [Fault.LOST]
    begun = End(repeatable=True, used=True)
    begun.feed(b"H")
    begun.connection.connection_lost(None)
    assert begun.heard.faults == [Fault.LOST]
    assert begun.pool.placed == []


def test_time_bounds():
    silent = End()
    silent.sweep(9)
    assert silent.heard.faults == []
    silent.sweep(2)
    assert silent.heard.faults == [Fault.FIRST_BYTE_TIMEOUT]
    head_only = End()
    head_only.feed(CHUNKED[:40])
    head_only.sweep(9)
    assert head_only.heard.faults == []
    head_only.sweep(2)
    assert head_only.heard.faults == [Fault.FIRST_BYTE_TIMEOUT]
    stalled = End()
    stalled.feed(CHUNKED[:60])
    stalled.sweep(4)
    stalled.feed(CHUNKED[60:70])
    stalled.sweep(4)
    assert stalled.heard.faults == []
    stalled.sweep(2)
    assert stalled.heard.faults == [Fault.IDLE_TIMEOUT]
    assert stalled.pipe.closed


def test_a_paused_answer_does_not_time_out():
    end = End()
    end.feed(CHUNKED[:60])
    end.call.pause()
    assert end.pipe.paused
    end.sweep(1000)
    assert end.heard.faults == []
    end.call.resume()
    assert not end.pipe.paused
    end.sweep(4)
    assert end.heard.faults == []
    end.sweep(2)
    assert end.heard.faults == [Fault.IDLE_TIMEOUT]


def test_abort_is_silent():
    end = End()
    end.feed(CHUNKED[:60])
    end.call.abort()
    assert end.pipe.closed
    end.connection.connection_lost(None)
    assert end.heard.faults == []
    assert end.heard.ended == 0
    assert end.host.connections == {}


def test_a_handler_that_aborts_hears_no_more():
    end = End()
    end.heard.on_headers = lambda status, headers: end.call.abort()
    end.feed(LENGTH)
    assert (end.heard.body, end.heard.ended) == (b"", 0)


def test_idle_connections_are_bounded_in_number_and_time():
    end = End()
    end.host.idle.extend([None, None])
    end.feed(LENGTH)
    assert end.pipe.closed
    kept = End()
    kept.feed(LENGTH)
    kept.sweep(29)
    assert kept.host.idle == [kept.connection]
    kept.sweep(2)
    assert kept.host.idle == []
    assert kept.pipe.closed


def test_endless_headers_are_a_fault():
    end = End()
    end.feed(b"HTTP/1.1 200 OK\r\n", *[b"X-%d: y\r\n" % i for i in range(200)])
    assert end.heard.faults == [Fault.PROTOCOL]
