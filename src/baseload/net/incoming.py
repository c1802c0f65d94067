"""A client's connection to our server: the parser's callbacks, and the order of the exchanges on it.

Requests pipelined on one connection are answered one after the other; what cannot be read is refused and dropped.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httptools

from baseload.domain.errors import Reason, Refusal
from baseload.net.exchange import PHRASES, Exchange
from baseload.net.names import COMMON_NAMES
from baseload.net.request_ids import RefusalLog, RequestIds, id_lines
from baseload.wire.openai_errors import error_body, internal_error_body

Handler = Callable[[Exchange], None]
_NEVER = float("inf")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Where a connection is in reading a request. Plain integers: reading a member off an Enum costs ten times as much.
_IDLE, _HEAD, _BODY = range(3)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take. Times in seconds."""

    header_bytes: int = 32 << 10  # request line and headers together; more is 431
    headers: int = 100
    header_timeout_s: float = 10.0  # from the first byte of a request to the end of its headers; then 408
    body_timeout_s: float = 30.0  # grace for the body, on top of its size at `body_bytes_per_s`; then 408
    body_bytes_per_s: int = 4 << 10
    keepalive_s: float = 75.0  # an idle connection is closed after so long
    write_stall_s: float = 60.0  # a client that takes nothing for so long is cut off
    linger_s: float = 2.0  # how long an over-long request is still read (and dropped) after it was refused
    write_buffer_bytes: int = 256 << 10  # above this the producer is asked to pause
    pipelined: int = 32  # requests read ahead of their turn; a connection with more is closed after these
    connections: int = 10_000


class Listener(Protocol):
    """What a connection needs of the server that took it."""

    handler: Handler
    max_body_bytes: int
    bounds: Bounds
    loop: asyncio.AbstractEventLoop
    closing: bool
    date_line: str  # the Date header with its line break
    ids: RequestIds
    refusals: RefusalLog
    connections: "dict[Incoming, None]"

    def forget(self, connection: "Incoming") -> None:
        """A connection is gone."""


class Incoming(asyncio.Protocol):
    """The parser's callbacks and the order of exchanges on one connection."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_since",
        "_deadline",
        "_deaf",
        "_final",
        "_first_bytes",
        "_head_bytes",
        "_headers",
        "_keep_alive",
        "_lingering",
        "_parser",
        "_pending",
        "_phase",
        "_pumping",
        "_read_bytes",
        "_reading_paused",
        "_stalled_since",
        "_url",
        "_version",
        "_waiters",
        "current",
        "ending",
        "server",
        "stalled",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, server: Listener) -> None:
        self.server = server
        self.current: Exchange | None = None
        self.ending = False  # close once what was read is answered
        self.stalled = False
        self._parser = httptools.HttpRequestParser(self)
        self._phase = _IDLE
        self._headers: dict[str, str] = {}
        self._pending: list[Exchange] = []
        self._pumping = False
        self._deaf = False  # whatever still comes is dropped
        self._final: bytes | None = None  # the answer to a request that could not be read; then the end
        self._lingering = False
        self._reading_paused = False
        self._deadline = _NEVER
        self._body_since = 0.0
        self._stalled_since = _NEVER
        self._waiters: list[asyncio.Future[None]] = []

    # -- transport ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        server = self.server
        self.transport.set_write_buffer_limits(high=server.bounds.write_buffer_bytes)
        server.connections[self] = None
        self._deadline = server.loop.time() + server.bounds.header_timeout_s
        if server.closing:
            self._refuse(Reason.SHUTTING_DOWN, "The server is shutting down.", 503)
            self._pump()
        elif len(server.connections) > server.bounds.connections:
            self._refuse(Reason.QUEUE_FULL, "Too many connections are open.", 503)
            self._pump()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._read_bytes = len(data)
        if self._phase is _HEAD:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = self.ending = True  # no other protocol is spoken here; the request itself is answered
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(Reason.BAD_REQUEST, f"This is not a valid HTTP/1.1 request: {error}.", 400)
        if self._phase is _HEAD and self._head_bytes - self._first_bytes > self.server.bounds.header_bytes:
            self._refuse_headers()
        if self._pending or self._final is not None:
            self._pump()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._deaf = True
        self._pending.clear()
        self._wake_waiters()
        del self._parser  # it holds this connection as this connection holds it
        self.server.forget(self)
        exchange, self.current = self.current, None
        if exchange is not None and not exchange.closed:
            exchange.closed = True
            callback, exchange.on_disconnect = exchange.on_disconnect, None
            exchange.on_writable = None
            if callback is not None:
                callback()

    def pause_writing(self) -> None:
        self.stalled = True
        self._stalled_since = self.server.loop.time()
        if self.current is not None and self.current.on_writable is not None:
            self.current.on_writable(False)

    def resume_writing(self) -> None:
        self.stalled = False
        self._stalled_since = _NEVER
        self._wake_waiters()
        if self.current is not None and self.current.on_writable is not None:
            self.current.on_writable(True)

    @property
    def date_line(self) -> str:
        """The Date header with its line break."""
        return self.server.date_line

    def new_id(self) -> str:
        """A request id that was never given before."""
        return self.server.ids.new()

    async def drain(self) -> None:
        """Wait until writing may go on, or the client is gone."""
        if self.stalled and not self.transport.is_closing():
            waiter = self.server.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    # -- parser callbacks (they never raise: a refusal is noted in `_final` and the rest is dropped) ---------------

    def on_message_begin(self) -> None:
        self._phase = _HEAD
        self._deadline = self.server.loop.time() + self.server.bounds.header_timeout_s
        self._head_bytes = self._first_bytes = self._read_bytes  # of whole reads, so perhaps of other requests too
        self._url = b""
        self._headers = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is not _HEAD:
            return  # trailers of a chunked body are dropped
        key = COMMON_NAMES.get(name) or name.decode("latin-1").lower()
        text, headers = value.decode("latin-1"), self._headers
        if key in headers:
            if key == "host":
                self._refuse(Reason.BAD_REQUEST, "The Host header stands twice.", 400)
            text = f"{headers[key]}, {text}"
        headers[key] = text
        if len(headers) > self.server.bounds.headers:
            self._refuse_headers()

    def on_headers_complete(self) -> None:
        headers, server = self._headers, self.server
        self._phase = _BODY
        self._body_since = server.loop.time()
        self._version = self._parser.get_http_version()
        self._keep_alive = self._version == "1.1" and self._parser.should_keep_alive()
        if self._head_bytes > server.bounds.header_bytes and self._is_head_long():
            self._refuse_headers()
        elif "host" not in headers and self._version == "1.1":
            self._refuse(Reason.BAD_REQUEST, "The Host header is missing.", 400)
        elif int(headers.get("content-length", "0")) > server.max_body_bytes:  # a number: the parser has checked
            self._refuse_body()
        elif headers.get("transfer-encoding", "chunked").lower() != "chunked":
            self._refuse(Reason.BAD_REQUEST, "Only the transfer encoding 'chunked' is understood.", 501)
        elif "expect" in headers:
            if headers["expect"].lower() != "100-continue":
                self._refuse(Reason.BAD_REQUEST, "Only the expectation '100-continue' is understood.", 417)
            elif self.current is None and not self._pending and not self._deaf:
                self.transport.write(_CONTINUE)

    def on_body(self, piece: bytes) -> None:
        self._body_bytes += len(piece)
        if self._body_bytes > self.server.max_body_bytes:
            self._refuse_body()
        else:
            self._body.append(piece)

    def on_message_complete(self) -> None:
        self._phase = _IDLE
        self._deadline = _NEVER
        if self._deaf:
            return
        if len(self._pending) >= self.server.bounds.pipelined:
            self._deaf = True
            return
        self._deaf = not self._keep_alive
        url = self._url.decode("latin-1")
        if "://" in url and url[0] != "/":  # absolute form
            url = "/" + url.partition("://")[2].partition("/")[2]
        path, _, query = url.partition("?")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        method = self._parser.get_method().decode("latin-1")
        is_1_1 = self._version == "1.1"
        exchange = Exchange(self, method, path, query, self._headers, body, self._keep_alive, is_1_1)
        self._pending.append(exchange)
        self._headers, self._body = {}, []

    # -- order of exchanges ----------------------------------------------------------------------------------------

    def exchange_ended(self, exchange: Exchange, *, keep_alive: bool) -> None:
        """The handler has answered the current exchange completely."""
        assert self.current is exchange
        exchange.closed = True
        exchange.on_disconnect = exchange.on_writable = None
        self.current = None
        if not keep_alive:
            self._deaf = True
            self._final = None
            self._pending.clear()
        self._pump()

    def _pump(self) -> None:
        """Hand the next complete request to the handler; close or go idle when there is none."""
        if self._pumping:
            return
        self._pumping = True
        while self._pending and self.current is None and not self.transport.is_closing():
            self.current = self._pending.pop(0)
            self._call_handler(self.current)
        self._pumping = False
        if self.transport.is_closing():
            return
        if self.current is None:
            if self._final is not None:
                self._linger()
            elif self._deaf or (self.ending and self._phase is _IDLE):
                self.transport.close()
                return
            elif self._phase is _IDLE:
                self._deadline = self.server.loop.time() + self.server.bounds.keepalive_s
        if bool(self._pending) is not self._reading_paused:
            self._reading_paused = not self._reading_paused
            if self._reading_paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
                if self._phase is not _IDLE:  # the time it was not read was not the client's
                    self._deadline = self._body_since = self.server.loop.time() + self.server.bounds.header_timeout_s

    def _call_handler(self, exchange: Exchange) -> None:
        try:
            self.server.handler(exchange)
        except Exception as error:  # the handler has a defect: it is reported, and the other clients live on
            context = {
                "message": f"the HTTP handler failed on {exchange.request_id}",
                "exception": error,
                "protocol": self,
            }
            self.server.loop.call_exception_handler(context)
            if exchange.started:
                exchange.abort()
            else:
                exchange.respond(500, internal_error_body())

    def end_when_idle(self) -> None:
        """Close as soon as what was read is answered."""
        self.ending = True
        if self.current is None and self._phase is _IDLE and self._final is None:
            self.transport.close()

    def give_notice(self) -> None:
        """Tell the handler, while it can still write, that the current exchange is cut off."""
        exchange = self.current
        if exchange is not None and not exchange.closed and exchange.on_disconnect is not None:
            callback, exchange.on_disconnect = exchange.on_disconnect, None
            callback()

    def _is_head_long(self) -> bool:
        size = len(self._url) + sum([len(name) + len(value) + 4 for name, value in self._headers.items()])
        return size > self.server.bounds.header_bytes

    # -- refusals and time -------------------------------------------------------------------------------------------

    def _refuse_headers(self) -> None:
        bounds = self.server.bounds
        text = f"The request has over {bounds.headers} headers, or over {bounds.header_bytes} bytes of them."
        self._refuse(Reason.TOO_LARGE, text, 431)

    def _refuse_body(self) -> None:
        self._refuse(Reason.TOO_LARGE, f"The request's body is over {self.server.max_body_bytes} bytes.", 413)

    def _refuse(self, reason: Reason, message: str, status: int) -> None:
        """Note the answer to a request that cannot be read. `_pump` sends it, after those before it."""
        if self._deaf:
            return
        self._deaf = True
        self._body = []
        body = error_body(Refusal(reason, message))[2]
        request_id = self.server.ids.new()
        self.server.refusals.note(request_id, status, reason, message)
        head = (
            f"HTTP/1.1 {status} {PHRASES[status]}\r\n{self.server.date_line}content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{id_lines(request_id, self._headers)}connection: close\r\n\r\n"
        )
        self._final = head.encode() + body

    def _linger(self) -> None:
        """Send the last answer, then drop what still comes: closing at once would reset the answer away."""
        if self._lingering:
            return
        assert self._final is not None
        self._lingering = True
        self.transport.write(self._final)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline = self.server.loop.time() + self.server.bounds.linger_s

    def check_time(self, now: float) -> None:
        """Enforce the time bounds (called by the sweep)."""
        bounds = self.server.bounds
        if now - self._stalled_since > bounds.write_stall_s or (self._lingering and now > self._deadline):
            self.transport.abort()
        elif self._deaf or self._reading_paused:
            return
        elif self._phase is _BODY:
            if now - self._body_since > bounds.body_timeout_s + self._body_bytes / bounds.body_bytes_per_s:
                self._time_out("The request's body took too long.")
        elif now > self._deadline:
            if self._phase is _HEAD:
                self._time_out("The request's headers took too long.")
            elif self.current is None:
                self.transport.close()

    def _time_out(self, message: str) -> None:
        self._refuse(Reason.DEADLINE, message, 408)
        self._pump()
