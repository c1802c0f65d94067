"""A pooled HTTP/1.1 client: callbacks on the hot route, and `request` for everything else.

    call = client.send("http://127.0.0.1:8001", "/v1/completions", body, handler)

The handler's methods are called from the event loop, never from within `send`. A request on a kept-alive
connection costs no task, no future and no timer; one sweep a few times a second enforces the time bounds.
A request on a connection that turns out to be stale (lost before any byte of the answer) is sent once more on
a fresh one, if the caller says that it may be repeated.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from baseload.domain.errors import NetError
from baseload.net.connection import Call, Connection, Fault, Host, ResponseHandler, fail

__all__ = ["Call", "Client", "Fault", "Response", "ResponseHandler"]


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """Connections to any number of hosts, kept alive. One event loop only; `close` ends them all."""

    def __init__(
        self,
        *,
        max_per_host: int = 4096,
        max_idle_per_host: int = 256,
        keepalive_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        first_byte_timeout_s: float = 600.0,
        idle_timeout_s: float = 120.0,
        max_header_bytes: int = 64 << 10,
        max_hosts: int = 4096,
        sweep_s: float = 0.25,
    ) -> None:
        self.max_per_host = max_per_host
        self.max_idle_per_host = max_idle_per_host
        self.keepalive_s = keepalive_s
        self.connect_timeout_s = connect_timeout_s
        self.first_byte_timeout_s = first_byte_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.max_header_bytes = max_header_bytes
        self.max_hosts = max_hosts
        self._sweep_s = sweep_s
        self._hosts: dict[str, Host] = {}
        self._connecting: dict[asyncio.Task[None], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False

    def send(
        self,
        url: str,
        path: str,
        body: bytes,
        handler: ResponseHandler,
        *,
        method: str = "POST",
        headers: Sequence[tuple[str, str]] = (),
        lines: str = "",
        repeatable: bool = False,
        first_byte_timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        ca_file: str = "",
    ) -> Call:
        """Begin a request to `url` (scheme, host, port and perhaps a prefix of the path) and `path`.

        `lines`: further headers as they stand, each with its line break. `ca_file`: certificates that https trusts
        besides the system's; it is read when the host is first asked.
        """
        assert not self.closed, "the client is closed"
        host = self._hosts.get(f"{url} {ca_file}" if ca_file else url) or self._add_host(url, ca_file)
        if headers:
            extra = "".join([f"{name}: {value}\r\n" for name, value in headers])
            if extra.count("\n") + extra.count("\r") != 2 * len(headers):
                raise ValueError("a header must not contain a line break")
            lines += extra
        if " " in path or not path.isascii():
            raise ValueError("a path must not contain a space")
        if body or method != "GET":
            lines = f"content-length: {len(body)}\r\n{lines}"
        head = f"{method} {host.prefix}{path} HTTP/1.1\r\n{host.host_line}{lines}\r\n"
        call = Call(
            data=head.encode("latin-1") + body,
            handler=handler,
            repeatable=repeatable,
            first_byte_timeout_s=self.first_byte_timeout_s if first_byte_timeout_s is None else first_byte_timeout_s,
            idle_timeout_s=self.idle_timeout_s if idle_timeout_s is None else idle_timeout_s,
        )
        self.place(call, host)
        return call

    def place(self, call: Call, host: Host, *, fresh: bool = False) -> None:
        """Put the call on an idle connection, or on a new one."""
        call.fresh = fresh
        while host.idle and not fresh:
            connection = host.idle.pop()
            if not connection.transport.is_closing():
                connection.begin(call)
                return
        call.fresh = True
        if len(host.connections) + host.opening >= self.max_per_host:
            text = f"{self.max_per_host} connections to {host.name}:{host.port} are open"
            self.loop.call_soon(fail, call, Fault.POOL_FULL, text)
            return
        host.opening += 1
        task = self.loop.create_task(self._connect(call, host))
        self._connecting[task] = None
        task.add_done_callback(self._connecting.pop)
        if self._timer is None:
            self._timer = self.loop.call_later(self._sweep_s, self._tick)

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        timeout_s: float = 30.0,
        max_body_bytes: int = 64 << 20,
    ) -> Response:
        """One request and its whole answer. `url` is complete. Raises `NetError` when no whole answer comes."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        whole = _Whole(asyncio.get_running_loop().create_future(), max_body_bytes)
        safe = method in ("GET", "PUT", "DELETE")
        call = self.send(
            f"{parts.scheme}://{parts.netloc}", path, body, whole, method=method, headers=headers, repeatable=safe
        )
        try:
            async with asyncio.timeout(timeout_s):
                return await whole.future
        except TimeoutError:
            raise NetError(f"{method} {url} was not answered within {timeout_s:g} s.") from None
        except NetError as error:
            raise NetError(f"{method} {url} failed: {error.message}.") from None
        finally:
            if not call.done:
                call.abort()

    async def close(self) -> None:
        """Cut every connection. Calls under way end without another word."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._connecting)
        for task in tasks:
            task.cancel()
        gone = []
        for host in self._hosts.values():
            for connection in list(host.connections):
                gone.append(connection.gone)
                if connection.call is not None:
                    connection.call.done = True
                connection.drop()
        if tasks or gone:
            await asyncio.wait([*tasks, *gone], timeout=5.0)

    @property
    def open_connections(self) -> int:
        """Connections open or being opened, over all hosts."""
        return sum(len(host.connections) + host.opening for host in self._hosts.values())

    @property
    def idle_connections(self) -> int:
        """Connections that wait in the pool."""
        return sum(len(host.idle) for host in self._hosts.values())

    def _add_host(self, url: str, ca_file: str) -> Host:
        self.loop = asyncio.get_running_loop()
        if len(self._hosts) >= self.max_hosts:  # forget hosts long gone, as replicas come and go
            for name in [name for name, host in self._hosts.items() if not host.connections and not host.opening]:
                del self._hosts[name]
        host = self._hosts[f"{url} {ca_file}" if ca_file else url] = Host(url, ca_file=ca_file)
        return host

    async def _connect(self, call: Call, host: Host) -> None:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self, host), host.name, host.port, ssl=host.tls
                )
        except TimeoutError:
            fail(call, Fault.CONNECT, f"no connection to {host.name}:{host.port} in {self.connect_timeout_s:g} s")
        except OSError as error:  # includes refused, unreachable, unknown host and TLS errors
            fail(call, Fault.CONNECT, f"{host.name}:{host.port}: {error.strerror or error}")
        finally:
            host.opening -= 1
        if connection is None:
            return
        if call.done:
            connection.release()
        elif connection.transport.is_closing():
            fail(call, Fault.LOST, f"{host.name}:{host.port} closed the new connection")
        else:
            connection.begin(call)

    def _tick(self) -> None:
        now = self.loop.time()
        busy = bool(self._connecting)
        for host in list(self._hosts.values()):
            for connection in list(host.connections):
                busy = True
                connection.check_time(now)
        self._timer = self.loop.call_later(self._sweep_s, self._tick) if busy and not self.closed else None


class _Whole:
    """Collects a whole answer into a future."""

    def __init__(self, future: "asyncio.Future[Response]", max_body_bytes: int) -> None:
        self.future = future
        self._max_body_bytes = max_body_bytes
        self._body = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}

    def on_headers(self, status: int, headers: dict[str, str]) -> None:
        self._status, self._headers = status, headers

    def on_body(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > self._max_body_bytes and not self.future.done():
            self.future.set_exception(NetError(f"the answer is over {self._max_body_bytes} bytes"))

    def on_end(self) -> None:
        if not self.future.done():
            self.future.set_result(Response(self._status, self._headers, bytes(self._body)))

    def on_error(self, fault: Fault, detail: str) -> None:
        if not self.future.done():
            self.future.set_exception(NetError(detail))
