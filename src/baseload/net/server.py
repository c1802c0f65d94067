"""An HTTP/1.1 server: one asyncio Protocol on httptools, no framework and no task per request.

    server = await serve(handle, host="127.0.0.1", port=0)

`handle(exchange)` is called synchronously once a request is complete; it answers at once or later through the
exchange. Requests pipelined on one connection are answered one after the other. Everything a client can make
grow or wait has a bound in `Bounds`; one sweep a few times a second enforces the time bounds, so that a request
costs no timer.
"""

import asyncio
import socket
from email.utils import formatdate

from baseload.net.exchange import Exchange
from baseload.net.incoming import Bounds, Handler, Incoming
from baseload.net.request_ids import RefusalLog, RequestIds

__all__ = ["Bounds", "Exchange", "Handler", "HttpServer", "serve"]

_LAST_WORD_S = 0.5  # for what handlers say to those who are cut off at the end


async def serve(
    handler: Handler,
    *,
    host: str,
    port: int,
    max_body_bytes: int = 32 << 20,
    sock: socket.socket | None = None,
    bounds: Bounds | None = None,
) -> "HttpServer":
    """Listen on host:port (0: any free port), or on `sock`, and call `handler` for each complete request."""
    server = HttpServer(handler, max_body_bytes=max_body_bytes, bounds=bounds or Bounds())
    await server.open(host, port, sock)
    return server


class HttpServer:
    """A listening server. `port` is the bound port; `close` ends it gracefully."""

    def __init__(self, handler: Handler, *, max_body_bytes: int, bounds: Bounds) -> None:
        self.handler = handler
        self.max_body_bytes = max_body_bytes
        self.bounds = bounds
        self.port = 0
        self.closing = False
        self.date_line = ""
        self.ids = RequestIds()
        self.refusals = RefusalLog()
        self.connections: dict[Incoming, None] = {}
        self._idle_waiter: asyncio.Future[None] | None = None
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None
        shortest = min(bounds.header_timeout_s, bounds.body_timeout_s, bounds.keepalive_s, bounds.write_stall_s)
        self._sweep_s = min(0.5, shortest / 4)

    async def open(self, host: str, port: int, sock: socket.socket | None = None) -> None:
        """Bind and listen."""
        self.loop = asyncio.get_running_loop()
        if sock is not None:
            self._server = await self.loop.create_server(self.connection, sock=sock, backlog=1024)
        else:
            self._server = await self.loop.create_server(self.connection, host, port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tick()

    async def close(self, grace_s: float = 0.0) -> None:
        """Take no new connection, let running exchanges finish for `grace_s` seconds, then cut the rest.

        Before one is cut its `on_disconnect` is called, and what that writes at once still goes out.
        """
        self.closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.end_when_idle()
        await self._until_no_connection(grace_s)
        for connection in list(self.connections):
            connection.give_notice()
        await self._until_no_connection(_LAST_WORD_S)
        for connection in list(self.connections):
            connection.transport.abort()
        await self._until_no_connection(5.0)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    @property
    def in_flight(self) -> int:
        """Exchanges handed to the handler and not yet ended."""
        return sum(connection.current is not None for connection in self.connections)

    def connection(self) -> asyncio.Protocol:
        """The protocol of one new connection."""
        return Incoming(self)

    def forget(self, connection: Incoming) -> None:
        """A connection is gone."""
        self.connections.pop(connection, None)
        if not self.connections and self._idle_waiter is not None and not self._idle_waiter.done():
            self._idle_waiter.set_result(None)

    async def _until_no_connection(self, timeout_s: float) -> None:
        if not self.connections:
            return
        self._idle_waiter = self.loop.create_future()
        await asyncio.wait([self._idle_waiter], timeout=timeout_s)
        self._idle_waiter = None

    def _tick(self) -> None:
        self.date_line = f"date: {formatdate(usegmt=True)}\r\n"
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check_time(now)
        self._sweep = self.loop.call_later(self._sweep_s, self._tick)
