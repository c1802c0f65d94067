"""The official client → the gateway → a real worker process with a tiny random model."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from baseload.domain.events import KeyCreated
from baseload.domain.work import Outcome, Tier
from baseload.gateway.keys import make_key

pytestmark = pytest.mark.system

SPEC = {"dtype": "float32", "max_seqs": 4, "max_step_tokens": 64, "max_waiting": 8, "kv_cache_bytes": 1 << 20}
USER = [{"role": "user", "content": "the quick brown fox jumps over the dog"}]


@contextlib.contextmanager
def worker(model: Path, cache: Path, *program: str) -> Iterator[str]:
    """The URL of a worker that runs so long."""
    command = [sys.executable, *program, "--model", str(model), "--name", "tiny"]
    command += ["--cache-dir", str(cache), "--replica-id", "r1"]
    process = subprocess.Popen(
        [*command, "--spec-json", json.dumps(SPEC)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)["ready"]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tiny_url(tiny_model: Path, cache: Path) -> Iterator[str]:
    with worker(tiny_model, cache, "-m", "baseload.worker") as url:
        yield url


@pytest.fixture
def tiny(house, tiny_url):
    house.put("tiny", tiny_url)
    return house


async def test_chat_whole_and_streamed_are_the_same(tiny):
    fixed = {"model": "tiny", "messages": USER, "seed": 3, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    whole = await tiny.openai.chat.completions.create(**fixed)
    stream = await tiny.openai.chat.completions.create(**fixed, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join([chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices])
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    silent = await tiny.openai.chat.completions.create(**fixed, stream=True)
    assert all(chunk.choices for chunk in [chunk async for chunk in silent])
    entries = tiny.control.entries()
    assert [entry.tokens.completion for entry in entries] == [12, 12, 12]
    assert {entry.tokens.prompt for entry in entries} == {whole.usage.prompt_tokens}
    assert all(entry.phases.decode_ns > 0 and entry.outcome is Outcome.OK for entry in entries)
    assert entries[2].tokens.cached_in > 0


async def test_n_logprobs_and_stop(tiny):
    answer = await tiny.openai.chat.completions.create(
        model="tiny", messages=USER, n=2, seed=1, max_tokens=4, logprobs=True, top_logprobs=3,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(len(choice.logprobs.content) == 4 for choice in answer.choices)
    assert all(len(token.top_logprobs) == 3 for token in answer.choices[0].logprobs.content)
    text = await tiny.openai.completions.create(
        model="tiny", prompt="the dog", max_tokens=3, logprobs=2, extra_body={"ignore_eos": True}
    )
    assert len(text.choices[0].logprobs.tokens) == 3
    assert text.choices[0].finish_reason == "length"


async def test_structured_output(tiny):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answer = await tiny.openai.chat.completions.create(
        model="tiny",
        messages=USER,
        max_tokens=60,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)
    with pytest.raises(openai.BadRequestError):
        await tiny.openai.chat.completions.create(
            model="tiny", messages=USER, extra_body={"guided_regex": "(unclosed"}
        )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_too_large_to_follow_is_the_clients_fault_and_tried_once(tiny, stream):
    properties = {f"field_{n}": {"type": "string"} for n in range(3000)}
    schema = {"type": "object", "properties": properties, "required": ["field_2999"]}  # {} is no answer
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    async def ask() -> None:
        answer = await tiny.openai.chat.completions.create(
            model="tiny", messages=USER, max_tokens=200, seed=1, response_format=wanted, stream=stream
        )
        if stream:
            [chunk async for chunk in answer]

    with pytest.raises(openai.APIError, match="fewer optional properties") as caught:
        await ask()
    assert (caught.value.code, caught.value.param) == ("invalid_value", "response_format")
    if not stream:
        assert isinstance(caught.value, openai.BadRequestError)
    (entry,) = tiny.control.entries()
    assert (entry.outcome, entry.reason, entry.attempts) == (Outcome.REJECTED, "bad_request", 1)


async def test_too_long_for_the_context(tiny):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await tiny.openai.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "the dog " * 2000}], stream=stream
            )
        assert caught.value.code == "context_length_exceeded"
    assert [entry.outcome for entry in tiny.control.entries()] == [Outcome.REJECTED] * 2


async def test_client_that_goes_frees_the_slot(house, tiny_model, cache, unhurried_worker):
    with worker(tiny_model, cache, *unhurried_worker) as url:

        async def running() -> int:
            return json.loads((await house.client.request("GET", f"{url}/stats")).body)["running"]

        house.put("tiny", url)
        stream = await house.openai.chat.completions.create(
            model="tiny", messages=USER, stream=True, max_tokens=400, extra_body={"ignore_eos": True}
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert await running() == 1
        await stream.close()
        async with asyncio.timeout(60):
            while await running() or not house.control.entries():
                pass
    (entry,) = house.control.entries()
    assert entry.outcome is Outcome.CANCELLED
    assert 0 < entry.tokens.completion < 400


async def test_the_class_of_service_is_echoed_whole_and_in_every_chunk(tiny):
    fixed = {"model": "tiny", "messages": USER, "seed": 3, "max_tokens": 3}
    make = tiny.openai.chat.completions.create
    for asked, said in ((None, None), ("auto", "default"), ("default", "default"), ("flex", "flex")):
        tier = {} if asked is None else {"service_tier": asked}
        whole = await make(**fixed, **tier)
        assert whole.service_tier == said
        assert ("service_tier" in whole.model_fields_set) == (said is not None)
        stream = await make(**fixed, **tier, stream=True, stream_options={"include_usage": True})
        assert {chunk.service_tier async for chunk in stream} == {said}
    plain = await tiny.openai.completions.create(model="tiny", prompt="x", extra_body={"service_tier": "flex"})
    assert plain.service_tier == "flex"
    with pytest.raises(openai.BadRequestError, match="service_tier"):
        await make(**fixed, service_tier="gold")


async def test_a_key_has_a_class_and_may_ask_for_no_higher(tiny):
    fixed = {"model": "tiny", "messages": USER, "max_tokens": 3}
    for own, allowed in (("flex", ["flex"]), ("default", ["flex", "default"]), ("priority", list(Tier))):
        key, secret = make_key(own, now_ns=tiny.control.now_ns(), tier=Tier(own))
        tiny.control.tell(KeyCreated(key))
        make = tiny.openai.with_options(api_key=secret, max_retries=0).chat.completions.create
        for tier in Tier:
            if tier in allowed:
                assert (await make(**fixed, service_tier=tier.value)).service_tier == tier
                continue
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await make(**fixed, service_tier=tier.value)
            assert caught.value.param == "service_tier"
            assert f"--tier {tier.value}" in str(caught.value)
        assert (await make(**fixed, service_tier="auto")).service_tier == own
        unasked = await make(**fixed)
        assert unasked.service_tier == (None if own == "default" else own)
