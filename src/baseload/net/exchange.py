"""One HTTP request and the means to answer it."""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

from msgspec import Struct

from baseload.net.request_ids import id_lines

PHRASES = {status.value: status.phrase for status in HTTPStatus}
_STATUS_LINES = {status: f"HTTP/1.1 {status} {phrase}\r\n" for status, phrase in PHRASES.items()}


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    transport: asyncio.Transport
    ending: bool
    stalled: bool

    @property
    def date_line(self) -> str:
        """The Date header with its line break."""

    def new_id(self) -> str:
        """A request id that was never given before."""

    async def drain(self) -> None:
        """Wait until writing may go on, or the client is gone."""

    def exchange_ended(self, exchange: "Exchange", *, keep_alive: bool) -> None:
        """The exchange was answered completely."""


class Exchange(Struct, eq=False):
    """One request and the means to answer it. `headers` has lower-case names; repeated ones are joined by ", ".

    Every answering method does nothing once the client is gone (`closed`), so a handler need not ask first.
    (A Struct because one is made per request, and its constructor costs an eighth of one in Python.)
    """

    _connection: Carrier
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    _keep_alive: bool
    _chunked: bool  # HTTP/1.0 knows no chunks: there, the end of the connection is the end
    closed: bool = False
    on_disconnect: Callable[[], None] | None = None
    on_writable: Callable[[bool], None] | None = None  # False: pause producing; True: go on
    _started: bool = False
    _request_id: str = ""

    def respond(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: Sequence[tuple[str, str]] = (),
        lines: str = "",
    ) -> None:
        """Answer with a whole body. `lines`: further headers as they stand, each with its line break."""
        if self.closed:
            return
        assert not self._started, "respond() after start() or respond()"
        self._started = True
        bare = status == 204 or status == 304
        length = "" if bare else f"content-length: {len(body)}\r\n"
        head = self._head(status, content_type, headers, length + lines)
        connection = self._connection
        connection.transport.write(head if bare or self.method == "HEAD" else head + body)
        connection.exchange_ended(self, keep_alive=self._keep_alive)

    def start(
        self, status: int, *, content_type: str, headers: Sequence[tuple[str, str]] = (), lines: str = ""
    ) -> None:
        """Begin an answer whose length is not known; `write` and `end` follow. `lines` as for `respond`."""
        if self.closed:
            return
        assert not self._started, "start() after start() or respond()"
        self._started = True
        framing = "transfer-encoding: chunked\r\n" if self._chunked else ""
        self._connection.transport.write(self._head(status, content_type, headers, framing + lines))

    def write(self, chunk: bytes) -> None:
        """Send a piece of the body begun with `start`."""
        if self.closed or not chunk or self.method == "HEAD":
            return
        assert self._started, "write() before start()"
        self._connection.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)

    def end(self, last: bytes = b"") -> None:
        """End the body begun with `start`, after sending `last` where given."""
        if self.closed:
            return
        assert self._started, "end() before start()"
        if self.method != "HEAD":
            if self._chunked:
                tail = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n"
                self._connection.transport.write(tail)
            else:
                self._connection.transport.write(last)
        self._connection.exchange_ended(self, keep_alive=self._keep_alive)

    def abort(self) -> None:
        """Cut the connection: the client sees a broken answer rather than a complete one."""
        if not self.closed:
            self.closed = True
            self.on_disconnect = None
            self._connection.transport.abort()

    async def drain(self) -> None:
        """Return once the write buffer is below its high-water mark, or the client is gone."""
        if not self.closed:
            await self._connection.drain()

    @property
    def request_id(self) -> str:
        """What this request is known by: the answer carries it, and so do ledger and log."""
        if not self._request_id:
            self._request_id = self._connection.new_id()
        return self._request_id

    @property
    def started(self) -> bool:
        """Whether an answer was begun."""
        return self._started

    @property
    def writable(self) -> bool:
        """Whether the write buffer is below its high-water mark."""
        return not self._connection.stalled

    def _head(self, status: int, content_type: str, headers: Sequence[tuple[str, str]], lines: str) -> bytes:
        if headers:
            extra = "".join([f"{name}: {value}\r\n" for name, value in headers])
            if extra.count("\n") != len(headers) or extra.count("\r") != len(headers):
                raise ValueError("a header must not contain a line break")
            lines += extra
        if "x-request-id:" not in lines:
            lines = id_lines(self.request_id, self.headers) + lines
        connection = self._connection
        if connection.ending:
            self._keep_alive = False
        if not self._keep_alive:
            lines += "connection: close\r\n"
        if content_type:
            lines = f"content-type: {content_type}\r\n{lines}"
        line = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n"
        return f"{line}{connection.date_line}{lines}\r\n".encode("latin-1")
