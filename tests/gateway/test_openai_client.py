"""The official client against the real gateway: every route, every option, every refusal."""

import json

import openai
import pytest

from baseload.domain.events import KeyRevoked
from baseload.domain.model import Admission
from baseload.domain.tenant import KeyLimits
from baseload.domain.work import Outcome, PhaseTimes, Tier, TokenCounts

TOOL = {"type": "function", "function": {"name": "f"}}
USER = [{"role": "user", "content": "four words for you"}]


async def test_chat_whole(house):
    answer = await house.openai.chat.completions.create(model="m", messages=USER)
    assert answer.choices[0].message.content == "four words for you"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 4
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.model_extra["baseload"] == {"queue_ns": 11, "prefill_ns": 22, "decode_ns": 33}
    (entry,) = house.control.entries()
    assert entry.outcome is Outcome.OK
    assert entry.tokens == TokenCounts(prompt=7, cached_in=3, completion=4)
    assert entry.phases == PhaseTimes(11, 22, 33)
    assert entry.first_byte_ns > 0
    assert house.gateway.in_flight == 0


async def test_the_ledger_says_in_which_class_a_request_ran(house):
    for tier in ("flex", "auto", "default"):
        await house.openai.chat.completions.create(model="m", messages=USER, service_tier=tier)
    assert [entry.tier for entry in house.control.entries()] == [Tier.FLEX, Tier.DEFAULT, Tier.DEFAULT]


async def test_chat_stream_without_usage(house):
    stream = await house.openai.chat.completions.create(model="m", messages=USER, stream=True)
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "four", "words", "for", "you"]
    assert all(chunk.usage is None for chunk in chunks)
    (entry,) = house.control.entries()
    assert entry.tokens == TokenCounts(prompt=7, cached_in=3, completion=4)
    assert entry.phases == PhaseTimes(11, 22, 33)


async def test_chat_stream_with_usage(house):
    stream = await house.openai.chat.completions.create(
        model="m", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 11
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 3


async def test_chat_stream_with_usage_refused_by_client(house):
    stream = await house.openai.chat.completions.create(
        model="m", messages=USER, stream=True, stream_options={"include_usage": False}
    )
    assert all(chunk.choices for chunk in [chunk async for chunk in stream])
    assert json.loads(house.worker.seen[0].body)["stream_options"] == {"include_usage": True}
    assert house.control.entries()[0].tokens.completion == 4


async def test_completions(house):
    whole = await house.openai.completions.create(model="m", prompt="one two", max_tokens=5)
    assert whole.choices[0].text == "one two"
    stream = await house.openai.completions.create(model="m", prompt="one two", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "onetwo"
    for prompt in (["a", "b"], [1, 2, 3], [[1, 2], [3]]):
        assert (await house.openai.completions.create(model="m", prompt=prompt)).choices[0].text == "hello world"
    assert len(house.control.entries()) == 5


async def test_n_and_logprobs(house):
    answer = await house.openai.chat.completions.create(model="m", messages=USER, n=3, logprobs=True, top_logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    token = answer.choices[2].logprobs.content[0]
    assert (token.token, token.logprob, token.bytes) == ("a", -0.5, [97])
    assert token.top_logprobs[0].token == "b"


async def test_body_goes_on_untouched(house):
    body = (
        b'{ "model":"m","messages":[{"role":"user","content":"hi"}], "response_format":{"type":"json_schema",'
        b'"json_schema":{"name":"n","schema":{"type":"object"},"strict":true}},"guided_regex":null,"top_k":5,'
        b'"min_p":0.1,"stop":["x"],"logit_bias":{"5":-1},"seed":7,"unknown_field":{"kept":[1.50]} }'
    )
    reply = await house.client.request(
        "POST",
        f"{house.url}/v1/chat/completions",
        body=body,
        headers=[("authorization", f"Bearer {house.secret}")],
    )
    assert reply.status == 200
    assert house.worker.seen[0].body == body
    assert "authorization" not in house.worker.seen[0].headers


async def test_structured_output_reaches_the_worker(house):
    await house.openai.chat.completions.create(
        model="m", messages=USER, stream=True, response_format={"type": "json_object"}
    )
    asked = json.loads(house.worker.seen[0].body)
    assert asked["response_format"] == {"type": "json_object"}
    assert asked["stream_options"] == {"include_usage": True}


async def test_request_ids(house):
    plain = await house.openai.chat.completions.with_raw_response.create(model="m", messages=USER)
    entry = house.control.entries()[0]
    assert plain.headers["x-request-id"] == entry.request_id
    assert house.worker.seen[0].headers["x-request-id"] == entry.request_id
    named = await house.openai.chat.completions.with_raw_response.create(
        model="m", messages=USER, extra_headers={"x-request-id": "mine-1"}
    )
    assert named.headers["x-request-id"] == "mine-1"
    assert named.headers["x-baseload-request-id"] == house.control.entries()[1].request_id
    bad = await house.openai.chat.completions.with_raw_response.create(
        model="m", messages=USER, extra_headers={"x-request-id": "not valid!"}
    )
    assert bad.headers["x-request-id"].startswith("req_")


async def test_every_refusal_has_an_id_that_stands_in_the_log(house, caplog):
    caplog.set_level("INFO", "baseload.net")
    bad = {"authorization": "Bearer bl-nobody"}
    good = {"authorization": f"Bearer {house.secret}"}
    asked = [
        ("POST", "/v1/chat/completions", b"{", good),
        ("POST", "/v1/chat/completions", b"{}", bad),
        ("DELETE", "/v1/models", b"", good),
        ("GET", "/nowhere", b"", good),
        ("GET", "/health", b"", {}),
        ("GET", "/admin/v1/status", b"", bad),
    ]
    answers = [
        await house.client.request(method, house.url + path, body=body, headers=list(headers.items()))
        for method, path, body, headers in asked
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    codes = [
        "400 bad_json",
        "401 invalid_api_key",
        "405 method_not_allowed",
        "404 unknown_url",
        "",
        "401 invalid_api_key",
    ]
    refused = [(of, code) for of, code in zip(ids, codes, strict=True) if code]
    assert [line.split(",")[0] for line in caplog.messages] == [f"refused {of}: {code}" for of, code in refused]
    assert caplog.messages[0].endswith(", POST /v1/chat/completions")


async def test_models(house):
    listed = await house.openai.models.list()
    assert [model.id for model in listed.data] == ["m", "sleepy"]
    assert (await house.openai.models.retrieve("m")).id == "m"
    with pytest.raises(openai.NotFoundError) as caught:
        await house.openai.models.retrieve("nope")
    assert caught.value.code == "model_not_found"
    narrow = house.openai.with_options(api_key=house.key("narrow", models=["m"]))
    assert [model.id for model in (await narrow.models.list()).data] == ["m"]


async def test_keys(house):
    with pytest.raises(openai.AuthenticationError) as caught:
        await house.openai.with_options(api_key="bl-wrong").chat.completions.create(model="m", messages=USER)
    assert caught.value.code == "invalid_api_key"
    no_key = {"authorization": ""}
    with pytest.raises(openai.AuthenticationError) as caught:
        await house.openai.chat.completions.create(model="m", messages=USER, extra_headers=no_key)
    assert caught.value.code == "missing_api_key"
    narrow = house.openai.with_options(api_key=house.key("narrow", models=["other"]))
    with pytest.raises(openai.NotFoundError) as denied:
        await narrow.chat.completions.create(model="m", messages=USER)
    with pytest.raises(openai.NotFoundError) as absent:
        await narrow.chat.completions.create(model="n", messages=USER)
    assert denied.value.message.replace("'m'", "'n'") == absent.value.message, "a key must not find out what exists"
    keys = house.control.keys()
    user = next(key for key in keys if key.name == "user")
    house.control.tell(KeyRevoked(user.key_id))
    with pytest.raises(openai.AuthenticationError):
        await house.openai.chat.completions.create(model="m", messages=USER)
    assert house.worker.seen == []


async def test_unknown_model_and_route(house):
    with pytest.raises(openai.NotFoundError) as caught:
        await house.openai.chat.completions.create(model="nope", messages=USER)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        await house.openai.embeddings.create(model="m", input="x")
    assert caught.value.code == "unknown_url"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["s"] * 17}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools"),
        ({"tools": [TOOL], "logprobs": True}, "logprobs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"extra_body": {"min_p": 2}}, "min_p"),
        ({"extra_body": {"guided_json": {}, "guided_regex": "a"}}, "guided_regex"),
        ({"extra_body": {"stop_token_ids": ["a"]}}, "stop_token_ids[0]"),
    ],
)
async def test_wrong_type_or_range(house, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        await house.openai.chat.completions.create(**{"model": "m", "messages": USER, **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert house.worker.seen == []
    assert house.control.entries() == []


async def test_bad_json_and_405(house):
    headers = [("authorization", f"Bearer {house.secret}")]
    url = f"{house.url}/v1/chat/completions"
    for body in (b"", b"{", b"[1]", b"\xff\xfe", b'{"model":"m"', b"[" * 100_000):
        reply = await house.client.request("POST", url, body=body, headers=headers)
        assert reply.status == 400
        assert json.loads(reply.body)["error"]["type"] == "invalid_request_error"
    reply = await house.client.request("GET", url, headers=headers)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert json.loads(reply.body)["error"]["code"] == "method_not_allowed"


async def test_too_long_for_the_context(house):
    with pytest.raises(openai.BadRequestError) as caught:
        await house.openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "status:400"}])
    assert caught.value.code == "context_length_exceeded"
    assert house.control.entries()[0].outcome is Outcome.REJECTED
    assert house.control.entries()[0].reason == "context_length_exceeded"


async def test_body_too_large(house):
    with pytest.raises(openai.APIStatusError) as caught:
        await house.openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * (2 << 20)}])
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"


async def test_rate_limit(house):
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=100_000)
    limited = house.openai.with_options(api_key=house.key("limited", limits=limits))
    first = await limited.chat.completions.with_raw_response.create(model="m", messages=USER)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-limit-tokens"] == "100000"
    estimate = 4 + 5 + 512  # template, words, reserved
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 100_000 - estimate
    with pytest.raises(openai.RateLimitError) as caught:
        await limited.chat.completions.create(model="m", messages=USER)
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


async def test_queue_full_and_deadline(house):
    house.put("tight", "/nowhere", admission=Admission(max_queue=0))
    with pytest.raises(openai.InternalServerError) as caught:
        await house.openai.chat.completions.create(model="tight", messages=USER)
    assert (caught.value.status_code, caught.value.code) == (503, "queue_full")
    assert int(caught.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.InternalServerError) as caught:
        await house.openai.chat.completions.create(
            model="sleepy", messages=USER, extra_headers={"x-baseload-deadline-ms": "20"}
        )
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    assert house.control.entries()[-1].outcome is Outcome.REFUSED
