"""The real gateway on a loopback port, the real control machine in memory, and scripted workers behind it."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import openai
import pytest

from baseload.core.control import ControlMachine
from baseload.core.ports import JournalRow, Sink, UsageRow
from baseload.domain.actions import CancelTimer, Dispatch, Record, Refuse, SetTimer, Shutdown, StartWorker, StopWorker
from baseload.domain.events import (
    ControlStarted,
    Event,
    KeyCreated,
    ModelPut,
    RequestArrived,
    RequestFinished,
    TimerFired,
    WorkerExited,
    WorkerReady,
    WorkerStarted,
)
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.status import ControlStatus
from baseload.domain.tenant import Allowance, Key, KeyLimits
from baseload.domain.work import Entry, Request, RequestEntry
from baseload.gateway.gateway import Gateway
from baseload.gateway.keys import make_key
from baseload.net.client import Client
from baseload.net.server import Bounds, Exchange, HttpServer, serve
from baseload.wire import openai_answers as wire
from baseload.wire.openai_errors import SSE


class MachineControl:
    """`Control` over the real machine, with timers on the loop and a journal in a list."""

    def __init__(self) -> None:
        self.machine = ControlMachine(seed=1)
        self.journal: list[tuple[int, Event, list[Entry]]] = []
        self.settled = 0  # events of the journal handed to the "operating system"
        self.workers: dict[str, str] = {}  # model → URL that its next replicas get
        self.started: list[str] = []
        self.shut_down = False
        self.ahead_ns = 0  # of the wall clock
        self._sinks: dict[str, Sink] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._queue: deque[Event] = deque()
        self._busy = False
        self.tell(ControlStarted(self.machine.policy_version, 1))

    def open(self, request: Request, sink: Sink) -> None:
        self._sinks[request.request_id] = sink
        self.tell(RequestArrived(request))

    def tell(self, event: Event) -> None:
        self._queue.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue:
                self._work(self._queue.popleft())
        finally:
            self._busy = False

    def _work(self, event: Event) -> None:
        now_ns = self.now_ns()
        actions = self.machine.step(now_ns, event)
        self.journal.append((now_ns, event, [a.entry for a in actions if isinstance(a, Record)]))
        if isinstance(event, RequestFinished):
            del self._sinks[event.request_id]
        for action in actions:
            match action:
                case Dispatch():
                    self._sinks[action.request_id].dispatch(action)
                case Refuse():
                    self._sinks.pop(action.request_id).refuse(action)
                case SetTimer():
                    self._set_timer(action)
                case CancelTimer():
                    handle = self._timers.pop(action.timer, None)
                    if handle is not None:
                        handle.cancel()
                case StartWorker():
                    self.started.append(action.replica_id)
                    url = self.workers.get(action.spec.name)
                    if url is not None:
                        self.tell(WorkerStarted(action.replica_id, 1, url))
                        self.tell(WorkerReady(action.replica_id, url))
                case StopWorker():
                    self.tell(WorkerExited(action.replica_id, 0))
                case Shutdown():
                    self.shut_down = True

    def _set_timer(self, action: SetTimer) -> None:
        handle = self._timers.pop(action.timer, None)
        if handle is not None:
            handle.cancel()
        delay_s = max(0.0, (action.at_ns - self.now_ns()) / 1e9)
        self._timers[action.timer] = asyncio.get_running_loop().call_later(delay_s, self._fire, action.timer)

    def _fire(self, timer: str) -> None:
        self._timers.pop(timer, None)
        self.tell(TimerFired(timer))

    def pass_time(self, seconds: float) -> None:
        """Have it so much later at once: what is due by then fires."""
        self.ahead_ns += round(seconds * 1e9)
        for timer, handle in list(self._timers.items()):
            left_s = handle.when() - asyncio.get_running_loop().time() - seconds
            handle.cancel()
            self._timers[timer] = asyncio.get_running_loop().call_later(max(0.0, left_s), self._fire, timer)

    def close(self) -> None:
        for handle in self._timers.values():
            handle.cancel()

    def settle(self) -> None:
        self.settled = len(self.journal)

    async def acknowledge(self, event: Event) -> None:
        self.tell(event)
        self.settle()

    def key_by_hash(self, secret_sha256: str) -> Key | None:
        return self.machine.key_by_hash(secret_sha256)

    def keys(self) -> Sequence[Key]:
        return self.machine.keys()

    def allowance(self, key_id: str) -> Allowance:
        return self.machine.allowance(key_id, self.now_ns())

    def model(self, name: str) -> ModelSpec | None:
        return self.machine.model(name)

    def models(self) -> Sequence[ModelSpec]:
        return self.machine.models()

    def status(self) -> ControlStatus:
        return self.machine.status(self.now_ns())

    def now_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    async def usage(self, *, from_day: str = "", to_day: str = "") -> list[UsageRow]:
        row = UsageRow(
            day=from_day or "2026-11-20", key_id="", key_name="", model="m", requests=len(self.entries()), failed=0,
            prompt_tokens=0, cached_tokens=0, completion_tokens=0, useful_ns=0, idle_ns=0, cold_ns=0, cost_nusd=0,
            energy_uj=0, energy_basis="modelled",
        )  # fmt: skip
        return [row]

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> list[JournalRow]:
        rows = [
            JournalRow(seq, at_ns, type(event).__name__, "", {})
            for seq, (at_ns, event, _) in enumerate(self.journal, start=1)
            if seq > after_seq and kind in ("", type(event).__name__)
        ]
        return rows[-limit:]

    def entries(self) -> list[RequestEntry]:
        """The ledger's request records, in order."""
        return [entry for _, _, entries in self.journal for entry in entries if isinstance(entry, RequestEntry)]


@dataclass
class Worker:
    """A scripted worker. The last user message (or the prompt) says what it does."""

    server: HttpServer | None = None
    seen: list[Exchange] = field(default_factory=list)
    hanging: list[Exchange] = field(default_factory=list)
    disconnects: int = 0
    fails_left: int = 0  # so many requests are aborted before their first byte
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.port}"

    def handle(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        self.arrived.set()
        exchange.on_disconnect = self._client_gone
        if self.fails_left:
            self.fails_left -= 1
            exchange.abort()
            return
        asked = json.loads(exchange.body)
        chat = exchange.path == "/v1/chat/completions"
        prompt = asked["messages"][-1]["content"] if chat else asked["prompt"]
        order = prompt if isinstance(prompt, str) else "hello world"
        if order.startswith("status:"):
            self._error(exchange, int(order[7:]))
        elif order == "die":
            exchange.abort()
        elif order == "hang":
            self.hanging.append(exchange)
        elif order == "fault" and asked.get("stream"):  # its first word says that the client is at fault
            exchange.start(200, content_type=SSE)
            exchange.end(b'data: {"error":{"message":"no such grammar","type":"x","code":"invalid_value"}}\n\n')
        elif order == "garbage":
            exchange.respond(200, b"<html>")
        elif order == "vanish":
            exchange.start(200, content_type="application/json")
            exchange.write(b'{"id":')
            asyncio.get_running_loop().call_later(0.01, exchange.abort)
        elif asked.get("stream"):
            self._stream(exchange, asked, chat, order)
        else:
            self._whole(exchange, asked, chat, order)

    def _client_gone(self) -> None:
        self.disconnects += 1
        self.gone.set()

    def _error(self, exchange: Exchange, status: int) -> None:
        code = "context_length_exceeded" if status == 400 else None
        error = {"message": f"worker says {status}", "type": "invalid_request_error", "param": None, "code": code}
        exchange.respond(status, json.dumps({"error": error}).encode())

    def _whole(self, exchange: Exchange, asked: dict, chat: bool, text: str) -> None:
        n = asked.get("n") or 1
        used = wire.usage(prompt=7, completion=n * len(text.split()), cached=3)
        times = wire.Phases(11, 22, 33)
        if chat:
            logprobs = wire.ChatLogprobs([wire.TokenLogprob("a", -0.5, [97], [wire.TopLogprob("b", -1.0, [98])])])
            choices = [
                wire.ChatChoice(
                    i,
                    message=wire.ChatMessageOut(text),
                    logprobs=logprobs if asked.get("logprobs") else None,
                    finish_reason="stop",
                )
                for i in range(n)
            ]
        else:
            choices = [wire.CompletionChoice(i, text, None, "stop") for i in range(n)]
        head = wire.Letterhead(chat, "x", 1, asked["model"])
        exchange.respond(200, head.answer(choices, used, baseload=times))

    def _stream(self, exchange: Exchange, asked: dict, chat: bool, text: str) -> None:
        """The words of the text; or "stream:5" words, and then perhaps ":die", ":error", ":stall" or ":end"."""
        parts = text.split(":")
        words = [f"w{i} " for i in range(int(parts[1]))] if parts[0] == "stream" else text.split()
        end = parts[2] if parts[0] == "stream" and len(parts) > 2 else "done"
        head = wire.Letterhead(chat, "x", 1, asked["model"])

        def event(choices: list, **more: object) -> bytes:
            return wire.sse(head.chunk(choices, **more))

        exchange.start(200, content_type=SSE)
        if chat:
            exchange.write(event([wire.ChatChoice(0, delta=wire.ChatDelta(role="assistant", content=""))]))
        chunks = []
        for word in words:
            delta = wire.ChatChoice(0, delta=wire.ChatDelta(content=word)) if chat else wire.CompletionChoice(0, word)
            chunks.append(event([delta]))
        exchange.write(b"".join(chunks))
        if end == "die":
            asyncio.get_running_loop().call_later(0.01, exchange.abort)
            return
        if end == "stall":
            self.hanging.append(exchange)
            return
        if end == "error":
            broken = b'data: {"error":{"message":"engine broke","type":"server_error","code":null}}\n\n'
            asyncio.get_running_loop().call_later(0.01, exchange.end, broken)
            return
        if end == "end":
            exchange.end()
            return
        if asked.get("stream_options", {}).get("include_usage"):
            used = wire.usage(prompt=7, completion=len(words), cached=3)
            exchange.write(event([], usage=used, baseload=wire.Phases(11, 22, 33)))
        exchange.end(wire.DONE)


@dataclass
class House:
    """Everything, and the official client in front of it."""

    control: MachineControl
    gateway: Gateway
    server: HttpServer
    client: Client  # the gateway's own, to its workers
    worker: Worker
    openai: openai.AsyncOpenAI
    secret: str
    admin_secret: str
    new_worker: Callable[[], Awaitable[Worker]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def put(self, name: str, source: str, **fields: object) -> None:
        self.control.tell(ModelPut(ModelSpec(name=name, source=source, **fields)))

    def key(self, name: str, *, models: Sequence[str] = (), limits: KeyLimits | None = None) -> str:
        key, secret = make_key(name, now_ns=self.control.now_ns(), models=models, limits=limits)
        self.control.tell(KeyCreated(key))
        return secret

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(data)
        return reader, writer


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A gateway with the models `m` (always on), `pair` (two replicas) and `sleepy` (never started by itself)."""
    servers: list[HttpServer] = []

    async def new_worker() -> Worker:
        worker = Worker()
        worker.server = await serve(worker.handle, host="127.0.0.1", port=0)
        servers.append(worker.server)
        return worker

    control = MachineControl()
    client = Client(sweep_s=0.02)
    gateway = Gateway(control, client)
    server = await serve(
        gateway.handle, host="127.0.0.1", port=0, max_body_bytes=1 << 20, bounds=Bounds(write_buffer_bytes=64 << 10)
    )
    worker = await new_worker()
    admin, admin_secret = make_key("admin", now_ns=control.now_ns(), is_admin=True)
    control.tell(KeyCreated(admin))
    user = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="-", max_retries=0, timeout=60)
    built = House(control, gateway, server, client, worker, user, "", admin_secret, new_worker)
    built.secret = built.key("user")
    user.api_key = built.secret
    control.workers["pair"] = worker.url
    built.put("m", worker.url, admission=Admission(max_attempts=2))
    built.put("sleepy", "/nowhere", admission=Admission(max_queue=2), scaling=Scaling(max_replicas=1))
    yield built
    await user.close()
    await server.close()
    await gateway.close()
    await client.close()
    for each in servers:
        await each.close()
    control.close()
