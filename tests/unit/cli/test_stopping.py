"""How `baseload up` ends, on a clock that jumps: running requests have drain_s, and everything else a second."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from baseload.cli.serving import LAST_MOMENT_S, _stop
from baseload.domain.events import ShutdownAsked
from baseload.domain.units import NS_PER_S

DRAIN_S = 30.0


class Jumping(selectors.DefaultSelector):
    """Waits for nothing: where a loop would sleep, its time moves on."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout:
            self.now_s += timeout
        return found


def on_jumping_time(run: Callable[[], Coroutine[Any, Any, None]]) -> float:
    selector = Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    return selector.now_s - 1000.0


class House:
    """A control with one running request and one worker; both the front and the signals of a process."""

    def __init__(self, *, request_s: float = 1e9, worker_s: float = 0.1, second_s: float = 1e9) -> None:
        self.did: list[str] = []
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.request_over, self.worker_over = asyncio.Event(), asyncio.Event()
        self._worker_s = worker_s
        self._killed = False
        loop = asyncio.get_running_loop()
        loop.call_later(request_s, self.request_over.set)
        loop.call_later(second_s, self.second.set)

    def status(self) -> "House":
        return self

    in_flight = 1

    async def stop(self, grace_s: float) -> bool:
        assert grace_s == DRAIN_S
        await self.request_over.wait()
        asyncio.get_running_loop().call_later(self._worker_s, self.worker_over.set)
        await self.worker_over.wait()
        return not self._killed

    def tell(self, event: object) -> None:
        assert event == ShutdownAsked(0)
        self.did.append("told")

    def kill_workers(self) -> None:
        self.did.append("killed")
        self._killed = True
        self.worker_over.set()

    async def cut_off(self) -> None:
        self.did.append("cut off")
        self.request_over.set()


@pytest.mark.parametrize(
    ("house", "did", "took_s", "warned"),
    [
        ({"request_s": 3.0}, [], 3.1, False),
        ({}, ["told", "cut off"], DRAIN_S + 0.1, False),
        ({"worker_s": 1e9}, ["told", "cut off", "killed"], DRAIN_S + LAST_MOMENT_S, True),
        ({"second_s": 2.0}, ["told", "cut off"], 2.1, False),
        ({"second_s": 2.0, "worker_s": 1e9}, ["told", "cut off", "killed"], 2.0 + LAST_MOMENT_S, True),
    ],
)
def test_an_end_takes_the_drain_and_a_moment(
    house: dict[str, float], did: list[str], took_s: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def end() -> None:
        one: Any = House(**house)
        await _stop(one, one, round(DRAIN_S * NS_PER_S), one)
        assert one.did == did

    assert on_jumping_time(end) == pytest.approx(took_s, abs=0.01)
    assert LAST_MOMENT_S <= 1.0
    assert ("were killed" in caplog.text) is warned
