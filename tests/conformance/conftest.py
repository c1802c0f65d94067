"""The two worlds behind the conformance body, with the same physics: 1 ms a prompt token, 10 ms a token made."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from baseload.domain.actions import Dispatch, Record, Refuse
from baseload.domain.errors import Reason
from baseload.domain.events import (
    ControlStarted,
    DispatchFailed,
    FirstByteSent,
    KeyCreated,
    ModelPut,
    ModelRemoved,
    RequestFinished,
    ShutdownAsked,
)
from baseload.domain.model import ModelSpec
from baseload.domain.status import ControlStatus
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Decision, Outcome, PhaseTimes, Request, RequestEntry, TokenCounts
from baseload.limits.step_time import StepTimeSpec
from baseload.live.driver import LiveControl
from baseload.live.launcher import LauncherOptions
from baseload.live.process import WorkerFiles
from baseload.live.run import ControlOptions, start_control
from baseload.twin.clients import Client, request_of
from baseload.twin.hosting import Fleet
from baseload.twin.spec import Faults, Physics
from baseload.twin.workload import Arrival
from baseload.twin.world import World as SimulatedWorld
from baseload.wire.journal import describe

MOCK = Path(__file__).with_name("mock_worker.py")
KEY = Key(key_id="key_000000000001", name="test", secret_sha256="1" * 64, created_ns=1)
Ledger = dict[str, list[dict[str, object]]]


def arrival(model: str, prompt_tokens: int, output_tokens: int) -> Arrival:
    return Arrival(
        at_ns=0,
        model=model,
        key=0,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        max_tokens=output_tokens,
        prefix=-1,
        prefix_tokens=0,
        stream=True,
    )


# -- the twin ------------------------------------------------------------------------------------------------------


class TwinAsk:
    """A simulated client, as the body sees it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.request_id = client.request.request_id

    @property
    def outcome(self) -> Outcome | None:
        return self.client.outcome

    @property
    def reason(self) -> Reason | None:
        return self.client.reason

    @property
    def completion_tokens(self) -> int:
        return self.client.finished_tokens.completion

    @property
    def has_begun(self) -> bool:
        return self.client.first_byte_ns > 0

    @property
    def attempts(self) -> int:
        return self.client.attempt


class BrokenStarts(SimulatedWorld):
    """Models whose source is "broken" have workers that end at once."""

    def _start(self, replica_id: str, spec: ModelSpec) -> None:
        self.faults = Faults(start_fails=1.0 if spec.source == "broken" else 0.0)
        super()._start(replica_id, spec)


class TwinWorld:
    """The simulated world: waiting is letting things happen."""

    def __init__(self) -> None:
        table = StepTimeSpec(basis="stated", fixed_ms=0.1, prefill=((1000, 1000.0),), decode=((1, 9.9), (64, 9.9)))
        physics = Physics(start_ms=150, fork_ms=5, step_time=table)
        self.world = BrokenStarts(seed=1, physics=physics, hosting=Fleet(physics, {}), faults=Faults())
        self.world.tell(ControlStarted("1", 1))
        self.world.tell(KeyCreated(KEY))

    async def put(self, spec: ModelSpec) -> None:
        self.world.tell(ModelPut(spec))

    async def remove(self, model: str) -> None:
        self.world.tell(ModelRemoved(model))

    def send(self, model: str, *, prompt_tokens: int, output_tokens: int) -> TwinAsk:
        client = self.world.ask(arrival(model, prompt_tokens, output_tokens), key_id=KEY.key_id)
        assert client is not None
        return TwinAsk(client)

    def hang_up(self, ask: TwinAsk) -> None:
        ask.client.hang_up()

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        limit_ns = self.world.now_ns + 300 * NS_PER_S
        while not holds():
            assert self.world.agenda.step(), f"nothing is left to happen, but not: {what}"
            assert self.world.now_ns < limit_ns, f"not within 300 virtual seconds: {what}"

    def status(self) -> ControlStatus:
        assert self.world.control is not None
        return self.world.control.status(self.world.stamp_ns())

    def crash(self, replica_id: str) -> None:
        self.world.workers[replica_id].die(-signal.SIGKILL)

    async def shut_down(self) -> Ledger:
        self.world.tell(ShutdownAsked(60 * NS_PER_S))
        await self.until(lambda: self.world.is_shut_down, "control has shut down")
        assert self.world.checkers is not None
        assert self.world.control is not None
        self.world.checkers.finish(self.world.stamp_ns(), self.world.control)
        ledger: Ledger = {"request": [], "replica": [], "decision": []}
        for item in self.world.journal:
            for action in item.actions:
                if isinstance(action, Record):
                    entry = action.entry
                    kind = {RequestEntry: "request", Decision: "decision"}.get(type(entry), "replica")
                    ledger[kind].append(describe(entry))
        return ledger

    async def close(self) -> None:
        """Nothing is held."""


# -- real processes ------------------------------------------------------------------------------------------------


class LiveAsk:
    """A sink with a client of a few lines in it: it forwards to the worker and reports, as the gateway does."""

    def __init__(self, control: LiveControl, request: Request, prompt_tokens: int) -> None:
        self.control = control
        self.request = request
        self.request_id = request.request_id
        self.prompt_tokens = prompt_tokens
        self.outcome: Outcome | None = None
        self.reason: Reason | None = None
        self.completion_tokens = 0
        self.has_begun = False
        self.attempts = 0
        self.task: asyncio.Task[None] | None = None

    def dispatch(self, action: Dispatch) -> None:
        self.attempts = action.attempt
        self.task = asyncio.get_running_loop().create_task(self._forward(action))

    def refuse(self, action: Refuse) -> None:
        self.outcome, self.reason = Outcome.REFUSED, action.reason

    def finish(self, outcome: Outcome, reason: Reason | None) -> None:
        self.outcome, self.reason = outcome, reason
        tokens = TokenCounts(self.prompt_tokens if self.has_begun else 0, 0, self.completion_tokens)
        self.control.tell(RequestFinished(self.request_id, outcome, reason, tokens, PhaseTimes()))
        self.control.settle()

    async def _forward(self, action: Dispatch) -> None:
        try:
            async with asyncio.timeout(120):
                whole = await self._stream(action.url)
        except (OSError, asyncio.IncompleteReadError):
            whole = False
        if whole:
            self.finish(Outcome.OK, None)
        elif self.has_begun:
            self.finish(Outcome.FAILED, Reason.WORKER_LOST)
        else:
            self.control.tell(DispatchFailed(self.request_id, action.replica_id, Reason.WORKER_LOST, "test"))

    async def _stream(self, url: str) -> bool:
        """Read the answer; True when it came to its proper end."""
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            body = json.dumps({"prompt_tokens": self.prompt_tokens, "max_tokens": self.request.max_tokens}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            while line := await reader.readline():
                if line.startswith(b"data: [DONE]"):
                    return True
                if line.startswith(b"data: ") and json.loads(line[6:])["choices"]:
                    self.completion_tokens += 1
                    if not self.has_begun:
                        self.has_begun = True
                        self.control.tell(FirstByteSent(self.request_id))
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class LiveWorld:
    """Real processes, sockets, SQLite and clock."""

    def __init__(self, control: LiveControl) -> None:
        self.control = control
        self.asks: list[LiveAsk] = []
        self.is_down = False

    async def put(self, spec: ModelSpec) -> None:
        await self.control.acknowledge(ModelPut(spec))

    async def remove(self, model: str) -> None:
        await self.control.acknowledge(ModelRemoved(model))

    def send(self, model: str, *, prompt_tokens: int, output_tokens: int) -> LiveAsk:
        request = request_of(
            arrival(model, prompt_tokens, output_tokens),
            request_id=f"req_{len(self.asks) + 1:024x}",
            key_id=KEY.key_id,
            deadline_ns=0,
        )
        ask = LiveAsk(self.control, request, prompt_tokens)
        self.asks.append(ask)
        self.control.open(request, ask)
        return ask

    def hang_up(self, ask: LiveAsk) -> None:
        assert ask.task is not None
        ask.task.cancel()
        ask.finish(Outcome.CANCELLED, Reason.CLIENT_GONE)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(120):
                while not holds():  # noqa: ASYNC110 - conditions over another process's doings; nothing to await
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"not within 120 s: {what}; {self.status()}") from None

    def status(self) -> ControlStatus:
        return self.control.status()

    def crash(self, replica_id: str) -> None:
        pid = next(one.pid for one in self.status().replicas if one.replica_id == replica_id)
        os.kill(pid, signal.SIGKILL)

    async def shut_down(self) -> Ledger:
        assert await self.control.drain(grace_s=60)
        rows = await self.control.events(limit=10_000)
        await self.close()
        return {kind: [row.body for row in rows if row.kind == kind] for kind in ("request", "replica", "decision")}

    async def close(self) -> None:
        if not self.is_down:
            self.is_down = True
            await self.control.stop(0.1)
        tasks: list[asyncio.Task[Any]] = [ask.task for ask in self.asks if ask.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def mock_command(spec: ModelSpec, files: WorkerFiles) -> Sequence[str]:
    broken = ["--broken"] if spec.source == "broken" else []
    names = ["--name", spec.name, "--replica-id", files.replica_id, "--ready-file", str(files.ready)]
    return [sys.executable, "-I", "-S", str(MOCK), *names, *broken, "--prefill-s", "0.001", "--token-s", "0.01"]


@pytest.fixture(params=["twin", "live"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TwinWorld | LiveWorld]:
    made: TwinWorld | LiveWorld
    if request.param == "twin":
        made = TwinWorld()
    else:
        launcher = LauncherOptions(cache_dir=tmp_path, command=mock_command, sample_s=0.2)
        control = await start_control(tmp_path, options=ControlOptions(launcher=launcher, seed=1, metered=False))
        await control.acknowledge(KeyCreated(KEY))
        made = LiveWorld(control)
    yield made
    await made.close()
