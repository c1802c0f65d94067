"""Server and client over real sockets, on asyncio's loop and on uvloop's: the same bodies."""

import asyncio
import socket
from collections.abc import Callable, Coroutine

import pytest
import uvloop

from baseload.domain.errors import NetError
from baseload.net.client import Client, Fault
from baseload.net.server import Bounds, Exchange, serve


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request) -> Callable[[Coroutine], None]:
    """Run a coroutine on one of the loops; anything the loop complains about fails the test."""

    def runner(body: Coroutine) -> None:
        complaints = []
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory, debug=request.param == "asyncio") as loop:
            loop.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            loop.run(asyncio.wait_for(body, 120))
        assert complaints == []

    return runner


class Heard:
    """A handler that remembers, with an event for its end."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.fault: Fault | None = None
        self.over = asyncio.Event()

    def on_headers(self, status: int, headers: dict[str, str]) -> None:
        self.status = status

    def on_body(self, chunk: bytes) -> None:
        self.body += chunk

    def on_end(self) -> None:
        self.over.set()

    def on_error(self, fault: Fault, detail: str) -> None:
        self.fault = fault
        self.over.set()


def echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.body or exchange.path.encode())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # the condition lies in code that sets no event
            await asyncio.sleep(0.002)


def test_requests_share_connections(run):
    async def body() -> None:
        server = await serve(echo, host="127.0.0.1", port=0)
        client = Client()
        url = f"http://127.0.0.1:{server.port}"
        for turn in range(20):
            assert (await client.request("POST", f"{url}/v1/x", body=b"%d" % turn)).body == b"%d" % turn
        assert client.open_connections == client.idle_connections == len(server.connections) == 1
        answers = await asyncio.gather(*[client.request("GET", f"{url}/{i}") for i in range(30)])
        assert [answer.body for answer in answers] == [b"/%d" % i for i in range(30)]
        big = b"x" * (8 << 20)
        assert (await client.request("POST", f"{url}/big", body=big)).body == big
        await client.close()
        await until(lambda: not server.connections)
        await server.close()

    run(body())


def test_a_stale_connection_is_replaced_once(run):
    async def body() -> None:
        seen = []

        def handle(exchange: Exchange) -> None:
            seen.append(exchange.path)
            if len(seen) in (2, 4):  # as if the server had closed the idle connection just before
                exchange.abort()
            else:
                echo(exchange)

        server = await serve(handle, host="127.0.0.1", port=0)
        client = Client()
        url = f"http://127.0.0.1:{server.port}"
        await client.request("GET", f"{url}/one")
        assert (await client.request("GET", f"{url}/two")).body == b"/two"
        assert seen == ["/one", "/two", "/two"]
        with pytest.raises(NetError):  # a POST is not repeated unasked
            await client.request("POST", f"{url}/three", body=b"x")
        await client.close()
        await server.close()

    run(body())


def test_nobody_there_and_names_that_do_not_exist(run):
    async def body() -> None:
        client = Client(connect_timeout_s=60)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            with pytest.raises(NetError, match=r"refused|Connect call failed"):
                await client.request("GET", f"http://127.0.0.1:{port}/")
        with pytest.raises(NetError, match="not a URL"):
            await client.request("GET", "ftp://127.0.0.1/")
        await client.close()

    run(body())


def test_a_server_that_never_answers(run):
    async def body() -> None:
        gone = []

        def handle(exchange: Exchange) -> None:
            exchange.on_disconnect = lambda: gone.append(exchange.path)

        server = await serve(handle, host="127.0.0.1", port=0)
        client = Client(sweep_s=0.01)
        url = f"http://127.0.0.1:{server.port}"
        with pytest.raises(NetError, match="not answered within"):
            await client.request("GET", f"{url}/request", timeout_s=1.5)
        heard = Heard()
        client.send(url, "/send", b"", heard, first_byte_timeout_s=1.5)
        await heard.over.wait()
        assert heard.fault is Fault.FIRST_BYTE_TIMEOUT
        await until(lambda: len(gone) == 2)
        assert sorted(gone) == ["/request", "/send"]
        assert client.open_connections == 0
        await client.close()
        await server.close()

    run(body())


def test_the_pool_is_bounded(run):
    async def body() -> None:
        waiting = []
        server = await serve(waiting.append, host="127.0.0.1", port=0)
        client = Client(max_per_host=2)
        heard = [Heard() for _ in range(3)]
        for one in heard:
            client.send(f"http://127.0.0.1:{server.port}", "/", b"", one)
            assert one.fault is None  # never from within send
        await heard[2].over.wait()
        assert heard[2].fault is Fault.POOL_FULL
        await until(lambda: len(waiting) == 2)
        for exchange in waiting:
            exchange.respond(200, b"ok")
        await heard[0].over.wait()
        await heard[1].over.wait()
        await client.close()
        await server.close()

    run(body())


def test_pausing_the_answer_slows_the_sender(run):
    async def body() -> None:
        sent = 0

        async def pour(exchange: Exchange) -> None:
            nonlocal sent
            exchange.start(200, content_type="text/plain")
            for _ in range(400):
                exchange.write(b"x" * 65536)
                sent += 65536
                await exchange.drain()
            exchange.end()

        tasks = []
        server = await serve(lambda e: tasks.append(asyncio.create_task(pour(e))), host="127.0.0.1", port=0)
        client = Client()
        heard = Heard()
        call = client.send(f"http://127.0.0.1:{server.port}", "/", b"", heard)
        call.pause()
        await until(lambda: sent > 0)
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 400 * 65536
        assert not heard.over.is_set()
        call.resume()
        await heard.over.wait()
        assert len(heard.body) == 400 * 65536
        await asyncio.gather(*tasks)
        await client.close()
        await server.close()

    run(body())


def test_close_lets_running_exchanges_finish(run):
    async def body() -> None:
        waiting = []
        server = await serve(waiting.append, host="127.0.0.1", port=0)
        client = Client()
        url = f"http://127.0.0.1:{server.port}"
        slow = asyncio.create_task(client.request("GET", f"{url}/slow"))
        _, idle = await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: len(waiting) == 1 and len(server.connections) == 2)
        closing = asyncio.create_task(server.close(60.0))
        await until(lambda: len(server.connections) == 1)
        with pytest.raises(NetError):
            await client.request("GET", f"{url}/new")
        assert not closing.done()
        waiting[0].respond(200, b"done")
        answer = await slow
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        await closing
        idle.close()
        await client.close()

    run(body())


def test_close_cuts_what_does_not_finish(run):
    async def body() -> None:
        waiting = []
        server = await serve(waiting.append, host="127.0.0.1", port=0)
        client = Client()
        stuck = asyncio.create_task(client.request("GET", f"http://127.0.0.1:{server.port}/"))
        await until(lambda: len(waiting) == 1)
        gone = []
        waiting[0].on_disconnect = lambda: gone.append(True)
        await server.close(0.05)
        assert gone == [True]
        with pytest.raises(NetError):
            await stuck
        await client.close()

    run(body())


def test_an_over_long_body_is_answered_although_the_client_still_sends(run):
    async def body() -> None:
        server = await serve(echo, host="127.0.0.1", port=0, max_body_bytes=1000, bounds=Bounds(linger_s=60))
        client = Client()
        answer = await client.request("POST", f"http://127.0.0.1:{server.port}/", body=b"x" * (16 << 20))
        assert answer.status == 413
        await client.close()
        await until(lambda: not server.connections)
        await server.close()

    run(body())


def test_connections_are_bounded(run):
    async def body() -> None:
        server = await serve(echo, host="127.0.0.1", port=0, bounds=Bounds(connections=2))
        writers = [(await asyncio.open_connection("127.0.0.1", server.port))[1] for _ in range(2)]
        await until(lambda: len(server.connections) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
        for each in [*writers, writer]:
            each.close()
        await server.close()

    run(body())
