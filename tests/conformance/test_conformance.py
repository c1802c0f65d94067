"""One body, two worlds: the same steps and expectations against real processes and against the twin.

Start, serve, scale to zero, wake, crash, drain. What differs between the worlds is in conftest.py alone; what a step
waits for is a condition, never a time.
"""

from collections.abc import Callable
from typing import Protocol

from baseload.domain.errors import Reason
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.status import ControlStatus, ModelStatus
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.domain.work import Outcome


class Ask(Protocol):
    """A client's request in either world."""

    request_id: str
    outcome: Outcome | None
    reason: Reason | None
    completion_tokens: int
    has_begun: bool
    attempts: int


class World(Protocol):
    """What the body needs of a world."""

    async def put(self, spec: ModelSpec) -> None: ...
    async def remove(self, model: str) -> None: ...
    def send(self, model: str, *, prompt_tokens: int, output_tokens: int) -> Ask: ...
    def hang_up(self, ask: Ask) -> None: ...
    async def until(self, holds: Callable[[], bool], what: str) -> None: ...
    def status(self) -> ControlStatus: ...
    def crash(self, replica_id: str) -> None: ...
    async def shut_down(self) -> dict[str, list[dict[str, object]]]: ...


SLOW = 2000  # tokens whose prefill takes 2 s in both worlds: time enough to crash a worker in it
LONG = 60  # tokens whose decode takes 0.6 s
ENDLESS = 1500  # tokens whose decode takes 15 s, which nobody waits for


def model(name: str = "m", *, source: str = "mock", replicas: int = 1, idle_ms: int = 60_000) -> ModelSpec:
    return ModelSpec(
        name=name,
        source=source,
        scaling=Scaling(
            max_replicas=replicas,
            idle_ns=idle_ms * NS_PER_MS,
            target_queue_delay_ns=50 * NS_PER_MS,
            scale_up_cooldown_ns=100 * NS_PER_MS,
            start_timeout_ns=100 * NS_PER_S,
        ),
        admission=Admission(max_queue=8, max_wait_ns=100 * NS_PER_S, max_concurrency_per_replica=4, max_attempts=2),
        context_tokens=4096,
    )


def of(world: World, name: str = "m") -> ModelStatus:
    return next(one for one in world.status().models if one.name == name)


async def ended(world: World, *asks: Ask) -> None:
    await world.until(lambda: all(ask.outcome is not None for ask in asks), "the requests ended")


async def test_start_serve_sleep_and_wake(world: World) -> None:
    await world.put(model())
    assert of(world).state == "asleep"
    first = world.send("m", prompt_tokens=20, output_tokens=5)
    assert first.outcome is None  # held while the worker starts, not refused
    assert of(world).queued == 1
    await ended(world, first)
    assert (first.outcome, first.completion_tokens, first.attempts) == (Outcome.OK, 5, 1)
    assert of(world).state == "awake"
    await world.put(model(idle_ms=300))
    await world.until(lambda: of(world).state == "asleep" and not world.status().replicas, "it sleeps again")
    second = world.send("m", prompt_tokens=20, output_tokens=3)
    await ended(world, second)
    assert (second.outcome, second.completion_tokens) == (Outcome.OK, 3)
    ledger = await world.shut_down()
    assert [entry["outcome"] for entry in ledger["request"]] == ["ok", "ok"]
    assert len({entry["replica_id"] for entry in ledger["request"]}) == 2  # one worker before, one after the sleep
    assert {entry["what"] for entry in ledger["decision"]} >= {"wake", "start", "sleep"}
    closes(ledger)


async def test_many_at_once_are_all_served_and_more_than_the_queue_holds_is_refused(world: World) -> None:
    await world.put(model(replicas=2))
    asks = [world.send("m", prompt_tokens=10, output_tokens=4) for _ in range(10)]
    refused = [ask for ask in asks if ask.outcome is not None]
    assert [ask.reason for ask in refused] == [Reason.QUEUE_FULL] * 2  # eight may wait
    await ended(world, *asks)
    assert sum(ask.outcome is Outcome.OK for ask in asks) == 8
    ledger = await world.shut_down()
    assert sorted(str(entry["outcome"]) for entry in ledger["request"]) == ["ok"] * 8 + ["refused"] * 2
    closes(ledger)


async def test_a_crash_before_the_first_byte_is_retried_on_another_worker(world: World) -> None:
    await world.put(model())
    ask = world.send("m", prompt_tokens=SLOW, output_tokens=4)
    await world.until(lambda: of(world).in_flight == 1, "it runs")
    victim = world.status().replicas[0].replica_id
    world.crash(victim)
    await ended(world, ask)
    assert (ask.outcome, ask.completion_tokens, ask.attempts) == (Outcome.OK, 4, 2)
    ledger = await world.shut_down()
    assert [(entry["outcome"], entry["attempts"]) for entry in ledger["request"]] == [("ok", 2)]
    assert ledger["request"][0]["replica_id"] != victim
    assert {entry["what"] for entry in ledger["decision"]} >= {"crash", "retry"}
    closes(ledger)


async def test_a_crash_after_the_first_byte_ends_the_request_and_bills_what_was_sent(world: World) -> None:
    await world.put(model())
    ask = world.send("m", prompt_tokens=10, output_tokens=ENDLESS)
    await world.until(lambda: ask.has_begun, "its first byte was sent")
    world.crash(world.status().replicas[0].replica_id)
    await ended(world, ask)
    assert (ask.outcome, ask.reason, ask.attempts) == (Outcome.FAILED, Reason.WORKER_LOST, 1)
    assert 1 <= ask.completion_tokens < ENDLESS
    ledger = await world.shut_down()
    (entry,) = ledger["request"]
    assert (entry["outcome"], entry["reason"]) == ("failed", "worker_lost")
    assert tokens_of(entry) == ask.completion_tokens
    closes(ledger)


async def test_removal_drains_and_cuts_nothing(world: World) -> None:
    await world.put(model())
    ask = world.send("m", prompt_tokens=10, output_tokens=LONG)
    await world.until(lambda: ask.has_begun, "its first byte was sent")
    await world.remove("m")
    late = world.send("m", prompt_tokens=10, output_tokens=4)
    await ended(world, ask, late)
    assert (ask.outcome, ask.completion_tokens) == (Outcome.OK, LONG)
    assert (late.outcome, late.reason) == (Outcome.REFUSED, Reason.UNKNOWN_MODEL)
    await world.until(lambda: not world.status().replicas, "its worker has ended")
    closes(await world.shut_down())


async def test_shutdown_lets_running_requests_finish(world: World) -> None:
    await world.put(model())
    ask = world.send("m", prompt_tokens=10, output_tokens=LONG)
    await world.until(lambda: ask.has_begun, "its first byte was sent")
    ledger = await world.shut_down()
    assert (ask.outcome, ask.completion_tokens) == (Outcome.OK, LONG)
    closes(ledger)


async def test_a_client_who_hangs_up_frees_the_worker(world: World) -> None:
    await world.put(model())
    ask = world.send("m", prompt_tokens=10, output_tokens=ENDLESS)
    await world.until(lambda: ask.has_begun, "its first byte was sent")
    world.hang_up(ask)
    assert ask.outcome is Outcome.CANCELLED
    await world.until(lambda: of(world).in_flight == 0, "control counts it no more")
    after = world.send("m", prompt_tokens=10, output_tokens=2)
    await ended(world, after)
    assert after.outcome is Outcome.OK
    ledger = await world.shut_down()
    assert [entry["outcome"] for entry in ledger["request"]] == ["cancelled", "ok"]
    closes(ledger)


async def test_a_worker_that_cannot_start_backs_off_says_why_and_refuses(world: World) -> None:
    await world.put(model(source="broken"))
    ask = world.send("m", prompt_tokens=10, output_tokens=2)
    await world.until(lambda: of(world).crashes >= 2, "it crashed twice")
    assert "before it was ready" in of(world).last_error
    await ended(world, ask)
    assert (ask.outcome, ask.reason) == (Outcome.REFUSED, Reason.MODEL_UNAVAILABLE)
    await world.until(lambda: of(world).state == "backing off", "it backs off")
    ledger = await world.shut_down()
    assert {entry["what"] for entry in ledger["decision"]} >= {"crash", "backoff", "refuse"}
    closes(ledger)


def tokens_of(entry: dict[str, object]) -> int:
    tokens = entry["tokens"]
    assert isinstance(tokens, dict)
    return int(tokens["completion"])


def closes(ledger: dict[str, list[dict[str, object]]]) -> None:
    """Shares + idle + cold = replica time, to the nanosecond; every replica's last span is final."""

    def total(kind: str, field: str) -> int:
        return sum(int(str(entry[field])) for entry in ledger[kind])

    life = total("replica", "to_ns") - total("replica", "from_ns")
    assert life > 0
    assert total("request", "useful_ns") + total("replica", "idle_ns") + total("replica", "cold_ns") == life
    replicas = {entry["replica_id"] for entry in ledger["replica"]}
    assert replicas == {entry["replica_id"] for entry in ledger["replica"] if entry["final"]}
