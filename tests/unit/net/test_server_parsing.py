"""The server's edge without a network: any cut of the bytes gives the same exchanges, and no bytes break it."""

import asyncio
import logging
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.net.request_ids import LINES_PER_S, RefusalLog, route_words
from baseload.net.server import Bounds, Exchange, HttpServer

POST = (
    b"POST /v1/x?a=1 HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX-Two: a\r\nX-Two: b\r\nContent-Length: 11\r\n\r\nhello world"
)
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Trailer: dropped\r\n\r\n"
)
GET = b"GET /g HTTP/1.1\r\nHost: h\r\n\r\n"


class Clock:
    """A loop's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.problems: list[dict] = []

    def time(self) -> float:
        return self.now

    def call_exception_handler(self, context: dict) -> None:
        self.problems.append(context)


class Pipe(asyncio.Transport):
    """A transport that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = self.aborted = self.eof = self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.eof
        self.sent += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class End:
    """One connection to a server whose handler keeps the exchanges, and answers at once unless told not to."""

    def __init__(self, *, at_once: bool = True, bounds: Bounds | None = None, max_body_bytes: int = 1000) -> None:
        self.exchanges: list[Exchange] = []
        self.at_once = at_once
        self.server = HttpServer(self._handle, max_body_bytes=max_body_bytes, bounds=bounds or Bounds())
        self.clock = self.server.loop = Clock()
        self.pipe = Pipe()
        self.connection = self.server.connection()
        self.connection.connection_made(self.pipe)

    def _handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.at_once:
            exchange.respond(200, b"ok")

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.pipe.closed:
                self.connection.data_received(piece)

    def sweep(self, seconds: float) -> None:
        self.clock.now += seconds
        self.connection.check_time(self.clock.now)

    def seen(self) -> list[tuple]:
        return [(x.method, x.path, x.query, x.headers, x.body) for x in self.exchanges]


def without_ids(sent: bytes) -> bytes:
    return re.sub(rb"req_[0-9a-f]{24}", b"req_", sent)


def test_every_split_gives_the_same_exchanges():
    for data in (POST, CHUNKED, GET, GET + POST, POST + CHUNKED + GET):
        whole = End()
        whole.feed(data)
        assert whole.exchanges
        for cut in range(1, len(data)):
            parts = End()
            parts.feed(data[:cut], data[cut:])
            assert parts.seen() == whole.seen()
            assert without_ids(parts.pipe.sent) == without_ids(whole.pipe.sent)
        single = End()
        single.feed(*[data[i : i + 1] for i in range(len(data))])
        assert single.seen() == whole.seen()


def test_what_an_exchange_holds():
    end = End()
    end.feed(POST, CHUNKED)
    first, second = end.exchanges
    assert (first.method, first.path, first.query) == ("POST", "/v1/x", "a=1")
    assert first.headers == {"host": "h", "x-empty": "", "x-two": "a, b", "content-length": "11"}
    assert first.body == second.body == b"hello world"
    assert "x-trailer" not in second.headers


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_or_waited_for(noise, cuts):
    end = End()
    places = [0, *sorted(cuts), len(noise)]
    end.feed(*[noise[a:b] for a, b in pairwise(places)])
    assert end.clock.problems == []
    assert end.pipe.sent == b"" or end.pipe.sent.startswith(b"HTTP/1.1 ")


@given(st.sampled_from([POST, CHUNKED, GET]), st.integers(0, 120), st.binary(min_size=1, max_size=3), st.booleans())
@settings(max_examples=400, deadline=None)
def test_damaged_requests_never_raise(request_bytes, at, noise, replace):
    at = min(at, len(request_bytes))
    damaged = request_bytes[:at] + noise + request_bytes[at + (len(noise) if replace else 0) :]
    whole, parts = End(), End()
    whole.feed(damaged, GET)
    parts.feed(*[damaged[i : i + 1] for i in range(len(damaged))], GET)
    assert whole.clock.problems == parts.clock.problems == []
    assert whole.seen() == parts.seen()
    assert whole.pipe.sent[:12] == parts.pipe.sent[:12]


def test_pipelined_requests_wait_their_turn():
    end = End(at_once=False)
    end.feed(GET + GET + POST)
    assert len(end.exchanges) == 1
    assert end.pipe.paused
    end.exchanges[0].respond(200, b"first")
    end.exchanges[1].start(200, content_type="text/plain")
    assert len(end.exchanges) == 2
    end.exchanges[1].write(b"sec")
    end.exchanges[1].end(b"ond")
    assert not end.pipe.paused
    end.exchanges[2].respond(200, b"third")
    sent = end.pipe.sent
    assert sent.index(b"first") < sent.index(b"3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n") < sent.index(b"third")
    assert not end.pipe.closed


def test_too_many_pipelined_requests_end_the_connection():
    end = End(bounds=Bounds(pipelined=4), at_once=False)
    end.feed(GET * 50)
    while not end.pipe.closed:
        end.exchanges[-1].respond(200, b"ok")
    assert end.pipe.sent.count(b"200 OK") == len(end.exchanges) == 4


def test_close_is_honoured():
    end = End()
    end.feed(b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + GET)
    assert len(end.exchanges) == 1
    assert b"connection: close\r\n" in end.pipe.sent
    assert end.pipe.closed
    assert not end.pipe.aborted
    old = End()
    old.feed(b"GET /a HTTP/1.0\r\n\r\n")
    assert b"connection: close\r\n" in old.pipe.sent
    assert old.pipe.closed


def test_http_1_0_streams_without_chunks():
    end = End(at_once=False)
    end.feed(b"GET /a HTTP/1.0\r\n\r\n")
    end.exchanges[0].start(200, content_type="text/plain")
    end.exchanges[0].write(b"abc")
    end.exchanges[0].end(b"def")
    assert end.pipe.sent.endswith(b"\r\n\r\nabcdef")
    assert b"chunked" not in end.pipe.sent


def test_head_has_no_body():
    end = End()
    end.feed(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n")
    assert end.pipe.sent.endswith(b"content-length: 2\r\n\r\n")


def test_other_protocols_are_not_spoken():
    end = End()
    end.feed(b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nnoise")
    assert len(end.exchanges) == 1
    assert end.pipe.closed


def test_expect_is_answered_before_the_body():
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    end = End()
    end.feed(head)
    assert end.pipe.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    end.feed(b"hi")
    assert b"200 OK" in end.pipe.sent
    big = End(max_body_bytes=1)
    big.feed(head)
    assert big.pipe.sent.startswith(b"HTTP/1.1 413 ")
    odd = End()
    odd.feed(head.replace(b"100-continue", b"a-pony"))
    assert odd.pipe.sent.startswith(b"HTTP/1.1 417 ")


def test_bounds_of_headers_and_body():
    def status(data: bytes, **more: object) -> bytes:
        end = End(bounds=Bounds(header_bytes=500, headers=10), **more)
        for at in range(0, len(data), 100):
            end.feed(data[at : at + 100])
        assert end.exchanges == []
        return end.pipe.sent[9:12]

    start = b"POST /a HTTP/1.1\r\nHost: h\r\n"
    assert status(start + b"X-Long: " + b"x" * 5000) == b"431"
    assert status(start + b"X-Long: " + b"x" * 600 + b"\r\n\r\n") == b"431"
    assert status(b"GET /" + b"x" * 5000) == b"431"
    assert status(start + b"".join([b"X-%d: y\r\n" % i for i in range(20)]) + b"\r\n") == b"431"
    assert status(start + b"Content-Length: 1001\r\n\r\n") == b"413"
    chunks = b"".join([b"64\r\n" + b"x" * 100 + b"\r\n" for _ in range(11)])
    assert status(start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) == b"413"
    assert status(start + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n") == b"501"
    assert status(b"GET / HTTP/1.1\r\n\r\n") == b"400"
    assert status(start + b"Host: other\r\n\r\n") == b"400"
    assert status(start + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n") == b"400"
    assert status(start + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n") == b"400"


START = b"POST /a HTTP/1.1\r\nHost: h\r\n"
UNREADABLE = {
    b"NONSENSE\r\n\r\n": "400 bad_request",
    b"GET / HTTP/1.1\r\n\r\n": "400 bad_request",
    START + b"Content-Length: 1001\r\n\r\n": "413 too_large",
    START + b"X-Long: " + b"x" * 60_000: "431 too_large",
    START + b"Transfer-Encoding: gzip, chunked\r\n\r\n": "501 bad_request",
    START + b"Expect: tea\r\n\r\n": "417 bad_request",
}


def ids_of(sent: bytes) -> list[str]:
    return re.findall(r"x-request-id: (.*)\r\n", sent.decode())


@pytest.mark.parametrize(("data", "said"), UNREADABLE.items())
def test_what_could_not_be_read_is_answered_with_an_id_that_stands_in_the_log(data, said, caplog):
    caplog.set_level(logging.INFO, "baseload.net")
    end = End()
    end.feed(*(data[at : at + 20_000] for at in range(0, len(data), 20_000)))
    (request_id,) = ids_of(end.pipe.sent)
    assert re.fullmatch("req_[0-9a-f]{24}", request_id)
    (line,) = caplog.messages
    assert line.startswith(f"refused {request_id}: {said}, ")
    assert "xxx" not in line


def test_a_request_that_took_too_long_is_answered_with_both_ids(caplog):
    caplog.set_level(logging.INFO, "baseload.net")
    end = End()
    end.feed(START + b"X-Request-Id: mine-7\r\nContent-Length: 9\r\n\r\n")
    end.sweep(31)
    assert end.pipe.sent.startswith(b"HTTP/1.1 408 ")
    assert ids_of(end.pipe.sent) == ["mine-7"]
    (ours,) = re.findall(r"x-baseload-request-id: (req_.*)\r\n", end.pipe.sent.decode())
    assert caplog.messages == [f"refused {ours}: 408 deadline_exceeded, The request's body took too long."]


def test_every_answer_has_an_id_of_its_own():
    end = End()
    end.feed(GET + POST + CHUNKED + b"NONSENSE\r\n\r\n")
    ids = ids_of(end.pipe.sent)
    assert len(ids) == len(set(ids)) == 4
    assert [exchange.request_id for exchange in end.exchanges] == ids[:3]
    named = End(at_once=False)
    named.feed(GET)
    named.exchanges[0].respond(200, b"", headers=[("x-request-id", "the handler's own")])
    assert ids_of(named.pipe.sent) == ["the handler's own"]


def test_refusals_cannot_fill_the_log(caplog):
    caplog.set_level(logging.INFO, "baseload.net")
    now_s = [5.0]
    log = RefusalLog(now_s=lambda: now_s[0])
    for number in range(1000):
        log.note(f"req_{number}", 401, "no_key", route_words("GET", "/v1/\x85models\nforged" + "x" * 999))
    assert len(caplog.messages) == LINES_PER_S
    assert all("\n" not in line and "\x85" not in line and len(line) < 200 for line in caplog.messages)
    now_s[0] += 1.0
    log.note("req_last", 401, "no_key", "GET /")
    assert caplog.messages[LINES_PER_S:] == [
        f"{1000 - LINES_PER_S} more requests were refused meanwhile", "refused req_last: 401 no_key, GET /",
    ]  # fmt: skip


def test_a_long_head_is_refused_wherever_it_is_cut():
    data = b"GET / HTTP/1.1\r\nHost: h\r\nX-Long: " + b"x" * 500 + b"\r\n\r\n"
    for cut in (1, 20, 100, len(data) // 2, len(data) - 2, len(data)):
        end = End(bounds=Bounds(header_bytes=500))
        end.feed(GET + data[:cut], data[cut:] or b"\r\n")
        assert b"HTTP/1.1 431" in end.pipe.sent
        assert len(end.exchanges) == 1


def test_a_refusal_waits_for_the_answers_before_it():
    end = End(at_once=False)
    end.feed(GET + b"NONSENSE\r\n\r\n")
    assert end.pipe.sent == b""
    end.exchanges[0].respond(200, b"first")
    assert end.pipe.sent.index(b"first") < end.pipe.sent.index(b"HTTP/1.1 400")
    assert end.pipe.eof


def test_a_refused_client_is_read_a_little_longer_and_then_cut():
    end = End(max_body_bytes=1)
    end.feed(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
    assert end.pipe.eof
    assert not end.pipe.closed
    end.feed(b"x" * 1000)
    end.sweep(1.9)
    assert not end.pipe.closed
    end.sweep(0.2)
    assert end.pipe.aborted


def test_slow_requests_are_cut():
    silent = End()
    silent.sweep(9)
    assert not silent.pipe.closed
    silent.sweep(2)
    assert silent.pipe.closed
    dripping = End()
    dripping.feed(b"GET /")
    for _ in range(11):
        dripping.feed(b"x")
        dripping.sweep(1)
    assert dripping.pipe.sent.startswith(b"HTTP/1.1 408")
    headers = End()
    headers.feed(b"GET / HTTP/1.1\r\n")
    for _ in range(11):
        headers.feed(b"X-A: b\r\n")
        headers.sweep(1)
    assert headers.pipe.sent.startswith(b"HTTP/1.1 408")
    body = End()
    body.feed(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n")
    for _ in range(31):
        body.feed(b"x")
        body.sweep(1)
    assert body.pipe.sent.startswith(b"HTTP/1.1 408")


def test_an_idle_connection_is_closed_but_a_busy_one_is_not():
    end = End(at_once=False)
    end.feed(GET)
    end.sweep(1000)
    assert not end.pipe.closed
    end.exchanges[0].respond(200, b"ok")
    end.sweep(74)
    assert not end.pipe.closed
    end.sweep(2)
    assert end.pipe.closed
    assert not end.pipe.aborted


def test_a_client_that_takes_nothing_is_cut():
    end = End(at_once=False)
    end.feed(GET)
    told = []
    end.exchanges[0].on_writable = told.append
    end.exchanges[0].start(200, content_type="text/plain")
    end.connection.pause_writing()
    assert not end.exchanges[0].writable
    end.sweep(59)
    end.connection.resume_writing()
    end.sweep(59)
    assert not end.pipe.closed
    end.connection.pause_writing()
    end.sweep(61)
    assert end.pipe.aborted
    assert told == [False, True, False]


def test_disconnect_is_told_once_and_only_while_open():
    end = End(at_once=False)
    told = []
    end.feed(GET)
    exchange = end.exchanges[0]
    exchange.on_disconnect = lambda: told.append("gone")
    end.connection.connection_lost(None)
    assert told == ["gone"]
    assert exchange.closed
    exchange.respond(200, b"nobody hears this")
    exchange.abort()
    assert end.pipe.sent == b""
    done = End(at_once=False)
    done.feed(GET)
    done.exchanges[0].on_disconnect = lambda: told.append("again")
    done.exchanges[0].respond(200, b"ok")
    done.connection.connection_lost(None)
    assert told == ["gone"]


def test_a_failing_handler_is_a_500_and_is_reported():
    end = End()
    end.server.handler = lambda exchange: 1 // 0
    end.feed(GET)
    assert end.pipe.sent.startswith(b"HTTP/1.1 500")
    assert isinstance(end.clock.problems[0]["exception"], ZeroDivisionError)
    assert not end.pipe.closed


def test_headers_cannot_be_split():
    end = End(at_once=False)
    end.feed(GET)
    for value in ("a\r\nset-cookie: x", "a\nb", "a\rb"):
        try:
            end.exchanges[0]._started = False
            end.exchanges[0].respond(200, b"", headers=[("x-a", value)])
        except ValueError:
            continue
        raise AssertionError(value)
    assert end.pipe.sent == b""
