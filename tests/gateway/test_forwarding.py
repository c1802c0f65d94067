"""What happens between the gateway and its workers when something goes wrong, and that nothing is left behind."""

import asyncio
import json

import openai
import pytest

from baseload.domain.events import (
    DispatchFailed,
    FirstByteSent,
    RequestFinished,
    WorkerReady,
    WorkerSampled,
    WorkerStarted,
)
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import Admission, Scaling
from baseload.domain.rng import Rng
from baseload.domain.work import Outcome


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(house, text: str, *, model: str = "m", stream: bool = False, extra: str = "") -> bytes:
    body = json.dumps({"model": model, "messages": user(text), "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {house.secret}\r\n"
        f"content-length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


async def until(condition) -> None:
    """Wait for the loop to bring the condition about."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # the condition lies in code that sets no event
            await asyncio.sleep(0.002)


async def two_replicas(house):
    """A model `pair` with two replicas on two workers, the first of which fails."""
    other = await house.new_worker()
    house.control.workers["pair"] = house.worker.url
    house.put(
        "pair",
        "/models/pair",
        scaling=Scaling(min_replicas=2, max_replicas=2),
        admission=Admission(max_attempts=3, max_concurrency_per_replica=1000),
    )
    _, second = [name for name in house.control.started if name.startswith("pair")]
    house.control.tell(WorkerReady(second, other.url))
    return other


async def test_worker_that_dies_before_the_first_byte_is_replaced(house):
    await two_replicas(house)
    house.worker.fails_left = 1
    answers = [await house.openai.chat.completions.create(model="pair", messages=user("a b")) for _ in range(4)]
    assert [answer.choices[0].message.content for answer in answers] == ["a b"] * 4
    assert [entry.outcome for entry in house.control.entries()] == [Outcome.OK] * 4
    assert max(entry.attempts for entry in house.control.entries()) == 2
    failed = [event for _, event, _ in house.control.journal if isinstance(event, DispatchFailed)]
    assert [event.reason for event in failed] == ["worker_lost"]


async def test_stream_that_dies_before_the_first_byte_is_replaced(house):
    other = await two_replicas(house)
    house.worker.fails_left = 1
    for _ in range(4):
        stream = await house.openai.chat.completions.create(model="pair", messages=user("a b"), stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == ["", "a", "b"]
    assert len(house.worker.seen) + len(other.seen) == 5


@pytest.mark.parametrize("order", ["die", "vanish", "garbage", "status:500", "status:401"])
async def test_no_replica_can_answer(house, order):
    with pytest.raises(openai.InternalServerError) as caught:
        await house.openai.chat.completions.create(model="m", messages=user(order))
    lost = order in ("die", "vanish")
    assert caught.value.status_code in (502, 503, 504)
    (entry,) = house.control.entries()
    assert entry.outcome is Outcome.FAILED
    failed = [event for _, event, _ in house.control.journal if isinstance(event, DispatchFailed)]
    assert {event.reason for event in failed} == {"worker_lost" if lost else "worker_error"}
    assert not any("says" in event.detail for event in failed)  # what a worker says may quote the prompt
    assert house.gateway.in_flight == 0


async def test_a_stream_whose_first_word_is_the_clients_fault_is_not_retried(house):
    with pytest.raises(openai.BadRequestError, match="no such grammar"):
        await house.openai.chat.completions.create(model="m", messages=user("fault"), stream=True)
    (entry,) = house.control.entries()
    assert (entry.outcome, entry.reason, entry.attempts) == (Outcome.REJECTED, "bad_request", 1)
    assert len(house.worker.seen) == 1
    assert house.gateway.in_flight == 0


async def test_overloaded_worker_is_retried_elsewhere(house):
    other = await two_replicas(house)
    house.put("pair", "/models/pair", scaling=Scaling(min_replicas=2, max_replicas=2), admission=Admission())
    asking = asyncio.create_task(house.openai.chat.completions.create(model="pair", messages=user("status:503")))
    await until(lambda: sum(isinstance(event, DispatchFailed) for _, event, _ in house.control.journal) == 2)
    house.control.pass_time(3600)
    with pytest.raises(openai.InternalServerError) as caught:
        await asking
    assert caught.value.status_code in (503, 504)
    assert len(house.worker.seen) == len(other.seen) == 1


async def test_connection_refused(house):
    house.put("absent", "http://127.0.0.1:1", admission=Admission(max_attempts=1))
    with pytest.raises(openai.InternalServerError) as caught:
        await house.openai.chat.completions.create(model="absent", messages=user("x"))
    assert caught.value.code == "worker_lost"


async def test_worker_that_dies_in_the_middle(house):
    reader, writer = await house.raw(post(house, "stream:3:die", stream=True, extra="connection: close\r\n"))
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 200 OK")
    assert [f"w{i} " in answer for i in range(4)] == [True, True, True, False]
    assert '"code":"worker_lost"' in answer
    assert "[DONE]" not in answer
    assert answer.endswith("0\r\n\r\n")
    (entry,) = house.control.entries()
    assert (entry.outcome, entry.reason) == (Outcome.FAILED, "worker_lost")
    assert entry.tokens.completion == 3


@pytest.mark.parametrize(("order", "code"), [("stream:2:error", "engine broke"), ("stream:2:end", "worker_lost")])
async def test_stream_without_done_is_no_success(house, order, code):
    reader, writer = await house.raw(post(house, order, stream=True, extra="connection: close\r\n"))
    answer = (await reader.read()).decode()
    writer.close()
    assert code in answer
    assert "[DONE]" not in answer
    assert house.control.entries()[0].outcome is Outcome.FAILED


async def test_the_client_sees_an_error_in_the_middle(house):
    stream = await house.openai.chat.completions.create(model="m", messages=user("stream:3:die"), stream=True)
    got = []
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            got.append(chunk.choices[0].delta.content)
    assert got == ["", "w0 ", "w1 ", "w2 "]


async def test_stalled_stream_is_cut(house):
    house.gateway.idle_timeout_s = 0.3
    with pytest.raises(openai.APIError):
        async for _ in await house.openai.chat.completions.create(
            model="m", messages=user("stream:2:stall"), stream=True
        ):
            pass
    (entry,) = house.control.entries()
    assert (entry.outcome, entry.reason, entry.tokens.completion) == (Outcome.FAILED, "worker_error", 2)
    await asyncio.wait_for(house.worker.gone.wait(), 60)


async def test_client_that_goes_frees_the_worker(house):
    reader, writer = await house.raw(post(house, "stream:2:stall", stream=True))
    await reader.readuntil(b"w1 ")
    writer.close()
    await asyncio.wait_for(house.worker.gone.wait(), 60)
    await until(house.control.entries)
    (entry,) = house.control.entries()
    assert (entry.outcome, entry.reason, entry.tokens.completion) == (Outcome.CANCELLED, "client_gone", 2)
    assert house.gateway.in_flight == 0


async def test_who_is_cut_off_at_the_end_is_told_why(house):
    streaming, one = await house.raw(post(house, "stream:3:stall", stream=True))
    await until(lambda: any(isinstance(event, FirstByteSent) for _, event, _ in house.control.journal))
    waiting, two = await house.raw(post(house, "hang"))
    await until(lambda: house.gateway.in_flight == 2)
    house.gateway.is_leaving = True
    await house.server.close(0.0)
    said = await streaming.read()
    assert b'"code":"shutting_down"' in said
    assert b"[DONE]" not in said
    assert said.endswith(b"\r\n0\r\n\r\n"), "the HTTP answer is whole"
    assert (await waiting.read()).startswith(b"HTTP/1.1 503 ")
    one.close()
    two.close()
    ends = [(entry.outcome, entry.reason) for entry in house.control.entries()]
    assert ends == [(Outcome.FAILED, "shutting_down")] * 2
    assert max(entry.tokens.completion for entry in house.control.entries()) == 3


async def test_client_that_goes_before_the_first_byte(house):
    _, writer = await house.raw(post(house, "hang"))
    await asyncio.wait_for(house.worker.arrived.wait(), 60)
    writer.close()
    await asyncio.wait_for(house.worker.gone.wait(), 60)
    await until(house.control.entries)
    assert house.control.entries()[0].outcome is Outcome.CANCELLED


async def test_client_that_goes_while_it_is_queued(house):
    _, writer = await house.raw(post(house, "x", model="sleepy"))
    await until(lambda: house.gateway.in_flight == 1)
    assert house.control.status().queued == 1
    writer.close()
    await until(lambda: house.gateway.in_flight == 0)
    (entry,) = house.control.entries()
    assert (entry.outcome, entry.replica_id) == (Outcome.CANCELLED, "")
    assert house.control.status().queued == 0


async def test_request_is_held_until_its_model_is_awake(house):
    asking = asyncio.create_task(house.openai.chat.completions.create(model="sleepy", messages=user("good morning")))
    await until(lambda: any(name.startswith("sleepy") for name in house.control.started))
    replica = house.control.started[-1]
    house.control.tell(WorkerStarted(replica, 1, house.worker.url))
    assert not asking.done()
    house.control.tell(WorkerReady(replica, house.worker.url))
    assert (await asking).choices[0].message.content == "good morning"


async def test_done_leaves_only_after_the_ledger_is_settled(house):
    """When the client reads the last byte, RequestFinished has been handed over (and so survives kill -9)."""
    for stream in (True, False):
        reader, writer = await house.raw(post(house, "a b", stream=stream, extra="connection: close\r\n"))
        writes = []
        original = house.control.settle

        def settle(original=original, writes=writes):
            writes.append(len(house.control.journal))
            original()

        house.control.settle = settle
        await reader.read()
        writer.close()
        house.control.settle = original
        finished = [i for i, (_, event, _) in enumerate(house.control.journal) if isinstance(event, RequestFinished)]
        assert house.control.settled > finished[-1]
        assert writes


async def test_slow_reader_slows_the_worker(house):
    """Backpressure goes all the way: the worker cannot push megabytes into the gateway's memory."""
    words = 60_000  # about 10 MB of events
    reader, writer = await house.raw(post(house, f"stream:{words}", stream=True, extra="connection: close\r\n"))
    await until(lambda: any(isinstance(event, FirstByteSent) for _, event, _ in house.control.journal))
    for _ in range(50):
        await asyncio.sleep(0.002)  # give it every chance to buffer too much
    (connection,) = house.server.connections
    assert connection.transport.get_write_buffer_size() < 2 << 20
    assert house.control.entries() == []
    answer = await reader.read()
    writer.close()
    assert answer.count(b"data: {") == words + 1
    assert house.control.entries()[0].tokens.completion == words


async def test_pipelined_requests_are_answered_in_order(house):
    requests = [post(house, f"number {i}", stream=bool(i % 2)) for i in range(6)]
    reader, writer = await house.raw(b"".join(requests) + post(house, "last", extra="connection: close\r\n"))
    answer = (await reader.read()).decode()
    writer.close()
    at = [answer.index(f'"{i}"' if i % 2 else f"number {i}") for i in range(6)]
    assert at == sorted(at)
    assert answer.count("HTTP/1.1 200 OK") == 7


async def test_nothing_is_left_after_thousands_of_mixed_outcomes(house):
    rng = Rng(7, "mix")
    orders = ["a b", "die", "vanish", "garbage", "status:400", "status:500", "status:503", "leave", "hang", "bad"]
    house.control.workers["local"] = house.worker.url
    admission = Admission(max_attempts=1, max_concurrency_per_replica=1000)
    house.put("local", "/models/local", scaling=Scaling(min_replicas=1), admission=admission)
    left = 2000

    async def give_signs_of_life() -> None:
        while True:  # as the live poller does; a replica that failed is trusted again only then
            house.control.tell(WorkerSampled(house.control.started[-1], WorkerSample()))
            await asyncio.sleep(0.002)

    async def one_client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            order = orders[rng.below(len(orders))]
            stream = rng.below(2) == 0
            if stream and order in ("a b", "die", "vanish"):
                order = ["stream:5", "stream:5:die", "stream:5:error", "stream:5:end"][rng.below(4)]
            goes = order in ("leave", "hang")
            text = ("stream:3:stall" if stream else "hang") if goes else order
            model = "nope" if order == "bad" else "local"
            reader, writer = await house.raw(
                post(house, text, model=model, stream=stream, extra="" if goes else "connection: close\r\n")
            )
            if goes and stream:
                await reader.read(rng.below(300) + 1)
            elif not goes:
                assert (await reader.read()).startswith(b"HTTP/1.1 ")
            writer.close()
            await writer.wait_closed()

    polling = asyncio.create_task(give_signs_of_life())
    try:
        async with asyncio.timeout(240):
            await asyncio.gather(*[one_client() for _ in range(16)])
    finally:
        polling.cancel()
    await until(lambda: not house.server.connections and house.gateway.in_flight == 0)
    status = house.control.status()
    assert (status.in_flight, status.queued) == (0, 0)
    assert house.control._sinks == {}
    assert house.client.open_connections == house.client.idle_connections
    counted = sum(of.answered + sum(of.failed.values()) for of in house.gateway.metrics.models.values())
    assert counted == len(house.control.entries())
    outcomes = {entry.outcome for entry in house.control.entries()}
    assert outcomes == {Outcome.OK, Outcome.REJECTED, Outcome.FAILED, Outcome.CANCELLED}
