"""The client's end of one HTTP/1.1 connection, and the call that runs on it."""

import asyncio
import ssl
from enum import StrEnum
from typing import Protocol
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from baseload.domain.errors import NetError
from baseload.net.names import COMMON_NAMES

_NEVER = float("inf")


class Fault(StrEnum):
    """Why a call failed."""

    CONNECT = "connect"  # nobody listens there, or the connection was not made in time
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"  # the answer stopped coming
    LOST = "lost"  # the connection ended before the answer did
    PROTOCOL = "protocol"  # the answer is not HTTP/1.1
    POOL_FULL = "pool_full"  # too many connections to this host are open


class ResponseHandler(Protocol):
    """Who gets the answer: on_headers, then on_body any number of times, then on_end; or on_error at any point."""

    def on_headers(self, status: int, headers: dict[str, str]) -> None:
        """The head of the answer; names are lower-case."""

    def on_body(self, chunk: bytes) -> None:
        """The part of the body that came with one read from the socket."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_error(self, fault: Fault, detail: str) -> None:
        """The answer will not come, or not completely. Nothing follows."""


class Call(Struct, eq=False):
    """One request under way. After `abort`, or after on_end or on_error, nothing more is called."""

    data: bytes
    handler: ResponseHandler
    repeatable: bool
    first_byte_timeout_s: float
    idle_timeout_s: float
    connection: "Connection | None" = None
    fresh: bool = False  # on a connection made for it
    paused: bool = False
    done: bool = False  # nothing more will be called

    def pause(self) -> None:
        """Read no more of the answer until `resume`; the sender is slowed down by TCP."""
        self.paused = True
        if self.connection is not None:
            self.connection.set_paused(True)

    def resume(self) -> None:
        """Go on reading."""
        self.paused = False
        if self.connection is not None:
            self.connection.set_paused(False)

    def abort(self) -> None:
        """Give the answer up. Its connection is closed at once, so that the server notices."""
        self.done = True
        if self.connection is not None:
            self.connection.drop()


class Pool(Protocol):
    """What a connection needs of the client."""

    loop: asyncio.AbstractEventLoop
    closed: bool
    keepalive_s: float
    max_idle_per_host: int
    max_header_bytes: int

    def place(self, call: Call, host: "Host", *, fresh: bool = False) -> None:
        """Put the call on an idle connection, or on a new one."""


class Host:
    """One origin and its connections."""

    __slots__ = ("connections", "host_line", "idle", "name", "opening", "port", "prefix", "tls")

    def __init__(self, url: str, *, ca_file: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NetError(f"'{url}' is not a URL of an HTTP server.", hint="Give one like http://127.0.0.1:8000.")
        self.name = parts.hostname
        self.tls = tls_context(ca_file) if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.host_line = f"host: {parts.netloc.rpartition('@')[2]}\r\n"
        self.prefix = parts.path.rstrip("/").removesuffix("/v1")  # a base URL is often given with its version
        self.connections: dict[Connection, None] = {}
        self.idle: list[Connection] = []  # most lately used last
        self.opening = 0


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """Who is trusted at the other end: the system's certificates and those of `ca_file`. Raises NetError."""
    context = ssl.create_default_context()
    try:
        if ca_file:
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NetError(f"The certificates in {ca_file} cannot be read: {said}.", hint="Give a PEM file.") from None
    return context


class Connection(asyncio.Protocol):
    """One connection; at most one call at a time."""

    __slots__ = (
        "_body_began",
        "_chunks",
        "_client",
        "_complete",
        "_deadline",
        "_got_byte",
        "_header_bytes",
        "_headers",
        "_headers_done",
        "_headers_told",
        "_host",
        "_keep_alive",
        "_parser",
        "_paused",
        "_status",
        "_until_eof",
        "_used",
        "call",
        "gone",
        "transport",
    )

    transport: asyncio.Transport
    _headers: dict[str, str]
    _headers_told: bool
    _chunks: list[bytes]

    def __init__(self, client: Pool, host: Host) -> None:
        self._client = client
        self._host = host
        self.call: Call | None = None
        self.gone: asyncio.Future[None] = client.loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._deadline = _NEVER
        self._paused = False
        self._used = False
        self._clear()

    def begin(self, call: Call) -> None:
        """Send the request."""
        assert self.call is None
        self.call = call
        call.connection = self
        self._clear()
        self._deadline = self._client.loop.time() + call.first_byte_timeout_s
        self.transport.write(call.data)
        if call.paused:
            self.set_paused(True)

    def release(self) -> None:
        """Back to the pool."""
        self.call = None
        self._used = True
        self.set_paused(False)
        host, client = self._host, self._client
        if client.closed or len(host.idle) >= client.max_idle_per_host:
            self.transport.close()
        else:
            self._deadline = client.loop.time() + client.keepalive_s
            host.idle.append(self)

    def drop(self) -> None:
        """Close at once; nobody is told."""
        self.call = None
        self.transport.abort()

    def set_paused(self, paused: bool) -> None:
        """Stop or go on reading."""
        if paused is not self._paused and not self.transport.is_closing():
            self._paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
                if self.call is not None and self._body_began:
                    self._deadline = self._client.loop.time() + self.call.idle_timeout_s

    def check_time(self, now: float) -> None:
        """Enforce the time bounds (called by the sweep)."""
        if now < self._deadline or self._paused:
            return
        call = self.call
        if call is None:
            if self in self._host.idle:
                self._host.idle.remove(self)
            self.transport.close()
        elif self._body_began:
            self._fail(Fault.IDLE_TIMEOUT, f"nothing came for {call.idle_timeout_s:g} s")
        else:
            self._fail(Fault.FIRST_BYTE_TIMEOUT, f"no answer within {call.first_byte_timeout_s:g} s")

    # -- transport ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._host.connections[self] = None

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:  # nothing was asked: whatever this is, it is not an answer
            self.transport.abort()
            return
        self._got_byte = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._fail(Fault.PROTOCOL, f"the answer is not HTTP/1.1: {error}")
                return
            self._keep_alive = False  # the answer was whole; what followed it was not
        if not self._headers_done:
            self._header_bytes += len(data)
            if self._header_bytes > self._client.max_header_bytes:
                self._fail(Fault.PROTOCOL, f"the answer's headers are over {self._client.max_header_bytes} bytes")
                return
        if self._chunks:
            self._body_began = True
        if self._body_began:  # until then the time to the first byte counts, as heads may come long before
            self._deadline = self._client.loop.time() + call.idle_timeout_s
        self._tell(call)

    def connection_lost(self, error: Exception | None) -> None:
        host, call = self._host, self.call
        host.connections.pop(self, None)
        if self in host.idle:
            host.idle.remove(self)
        self.gone.set_result(None)
        del self._parser  # it holds this connection as this connection holds it
        if call is None:
            return
        if self._until_eof and error is None:
            self._complete = True
            self._keep_alive = False
            self._tell(call)
        elif self._used and not self._got_byte and call.repeatable and not call.fresh and not self._client.closed:
            self.call = call.connection = None
            self._client.place(call, host, fresh=True)
        else:
            self._fail(Fault.LOST, str(error) if error else "the connection ended before the answer did")

    # -- parser callbacks (only noted; `_tell` speaks once the read is parsed) -------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headers_done:
            key = COMMON_NAMES.get(name) or name.decode("latin-1").lower()
            self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # "100 Continue" and the like precede the answer
            self._headers = {}
            return
        headers = self._headers
        self._status = status
        self._headers_done = True
        no_length = "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "")
        self._until_eof = no_length and status not in (204, 304)

    def on_body(self, piece: bytes) -> None:
        if not self._complete:
            self._chunks.append(piece)

    def on_message_complete(self) -> None:
        if self._headers_done:
            if self._complete:
                self._keep_alive = False  # a second answer to one request
            else:
                self._complete = True
                self._keep_alive = self._parser.should_keep_alive()

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False

    # -- telling the handler ----------------------------------------------------------------------------------------

    def _tell(self, call: Call) -> None:
        if self._headers_done and not self._headers_told:
            self._headers_told = True
            call.handler.on_headers(self._status, self._headers)
        if self._chunks and self.call is call:
            chunks, self._chunks = self._chunks, []
            call.handler.on_body(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if self._complete and self.call is call:
            call.done = True
            call.connection = None
            if self._keep_alive and not self.transport.is_closing():
                self.release()
            else:
                self.drop()
            call.handler.on_end()

    def _fail(self, fault: Fault, detail: str) -> None:
        call = self.call
        self.drop()
        if call is not None:
            fail(call, fault, detail)

    def _clear(self) -> None:
        self._headers = {}
        self._header_bytes = 0
        self._headers_done = self._headers_told = self._complete = self._got_byte = False
        self._body_began = False
        self._until_eof = self._keep_alive = False
        self._status = 0
        self._chunks = []


def fail(call: Call, fault: Fault, detail: str) -> None:
    """Tell the call's handler, unless it has been told its end already."""
    if not call.done:
        call.done = True
        call.connection = None
        call.handler.on_error(fault, detail)
