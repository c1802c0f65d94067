"""OpenAI requests: every parameter, every refusal, and the one mapping of reasons to HTTP."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.domain.errors import Reason, Refusal
from baseload.domain.sampling import Grammar, GrammarKind, Sampling
from baseload.wire.openai import parse_chat, parse_completion, to_sampling
from baseload.wire.openai_answers import ChatChoice, ChatDelta, Letterhead, model_list, usage
from baseload.wire.openai_errors import error_body, error_event, error_of_worker

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


def chat(**fields: object):
    return parse_chat(json.dumps({**CHAT, **fields}).encode())


def text(**fields: object):
    return parse_completion(json.dumps({**TEXT, **fields}).encode())


def test_defaults_are_openais():
    assert to_sampling(chat()) == Sampling()
    assert to_sampling(text()) == Sampling(max_tokens=16)
    nulls = dict.fromkeys(
        ["temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "stream_options", "max_tokens",
         "logprobs", "response_format", "tools", "top_k", "guided_json", "structured_outputs"]
    )  # fmt: skip
    assert to_sampling(chat(**nulls)) == Sampling()


def test_every_parameter_reaches_the_sampler():
    sampling = to_sampling(
        chat(
            temperature=0, top_p=0.5, top_k=40, min_p=0.05, seed=-3, stop=["a", "", "b"], stop_token_ids=[7, 8],
            max_tokens=5, max_completion_tokens=9, presence_penalty=-2, frequency_penalty=2,
            logit_bias={"9": -100, "3": 1.5}, n=16, logprobs=True, top_logprobs=20, ignore_eos=True,
        )
    )  # fmt: skip
    assert sampling == Sampling(
        temperature=0.0, top_p=0.5, top_k=40, min_p=0.05, seed=-3, stop=("a", "b"), stop_token_ids=(7, 8),
        max_tokens=9, presence_penalty=-2.0, frequency_penalty=2.0, logit_bias=((3, 1.5), (9, -100.0)), n=16,
        logprobs=True, top_logprobs=20, ignore_eos=True,
    )  # fmt: skip
    assert to_sampling(chat(top_k=-1, stop="x")).top_k == 0
    assert to_sampling(chat(stop="x")).stop == ("x",)
    with_logprobs = to_sampling(text(logprobs=0))
    assert (with_logprobs.logprobs, with_logprobs.top_logprobs) == (True, 0)
    assert to_sampling(text(logprobs=5)).top_logprobs == 5


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(GrammarKind.JSON_OBJECT)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}'),
        ),
        ({"guided_json": {"a": 1}}, Grammar(GrammarKind.JSON_SCHEMA, '{"a": 1}')),
        ({"guided_json": '{"a": 1}'}, Grammar(GrammarKind.JSON_SCHEMA, '{"a": 1}')),
        ({"guided_regex": "a+"}, Grammar(GrammarKind.REGEX, "a+")),
        ({"guided_grammar": "start: x"}, Grammar(GrammarKind.LARK, "start: x")),
        ({"guided_choice": ["a.b", "c"]}, Grammar(GrammarKind.REGEX, "(a\\.b)|(c)")),
        ({"structured_outputs": {"json": {"a": 1}}}, Grammar(GrammarKind.JSON_SCHEMA, '{"a": 1}')),
        ({"structured_outputs": {"regex": "b"}}, Grammar(GrammarKind.REGEX, "b")),
        ({"structured_outputs": {"json_object": True}}, Grammar(GrammarKind.JSON_OBJECT)),
    ],
)
def test_structured_output(fields, grammar):
    assert to_sampling(chat(**fields)).grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param", "allowed"),
    [
        ({"temperature": 2.1}, "temperature", "between 0 and 2"),
        ({"n": 1.5}, "n", "an integer between 1 and 16"),
        ({"stop": 5}, "stop", "at most 16 strings"),
        ({"logprobs": 3}, "logprobs", "true or false"),
        ({"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        ({"logit_bias": {"5": 200}}, "logit_bias", "between -100 and 100"),
        ({"logit_bias": {"-5": 1}}, "logit_bias", "token ids"),
        ({"seed": 2**64}, "seed", "64 bits"),
        ({"model": ""}, "model", "GET /v1/models"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "needs a content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"stream_options": {"include_usage": True}}, "stream_options", '"stream": true'),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"modalities": ["audio"]}, "modalities", "text"),
        ({"guided_json": 5}, "guided_json", "JSON Schema"),
        ({"guided_json": "{"}, "guided_json", "JSON Schema"),
        ({"guided_choice": []}, "guided_choice", "non-empty"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "one structured output"),
    ],
)
def test_refusals_name_field_and_range(fields, param, allowed):
    with pytest.raises(Refusal) as caught:
        chat(**fields)
    assert (caught.value.reason, caught.value.param) == (Reason.BAD_REQUEST, param)
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_completion_refusals(fields, param):
    with pytest.raises(Refusal) as caught:
        text(**fields)
    assert caught.value.param == param


def test_what_is_tolerated():
    chat(tools=[{}], tool_choice="none", metadata={"a": "b"}, store=True, service_tier="auto", user="u", anything=[1])
    history = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert [message.text for message in chat(messages=history).messages] == ["", "42", "ab"]
    assert text(prompt=[1, 2]).prompts == ((1, 2),)
    assert text(prompt=[[1], [2]]).prompts == ((1,), (2,))
    assert text(prompt=["a", "b"]).prompts == ("a", "b")


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"\xff", b'{"model":"\xff"}', b"[" * 100_000, b'{"a":1}x'])
def test_what_is_not_json(body):
    for parse in (parse_chat, parse_completion):
        with pytest.raises(Refusal) as caught:
            parse(body)
        assert error_body(caught.value)[0] == 400


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(
    ["model", "messages", "prompt", "n", "stop", "temperature", "stream_options", "logit_bias", "response_format",
     "guided_json", "structured_outputs", "tools", "logprobs", "seed", "max_tokens", "stream"]
)  # fmt: skip


@given(st.dictionaries(_fields, _json, max_size=4))
@settings(max_examples=400, deadline=None)
def test_any_value_anywhere_is_taken_or_refused(fields):
    for base, parse in ((CHAT, parse_chat), (TEXT, parse_completion)):
        try:
            request = parse(json.dumps({**base, **fields}).encode())
            to_sampling(request)
        except Refusal as refusal:
            json.loads(error_body(refusal)[2])


def test_every_reason_has_a_status():
    for reason in Reason:
        status, headers, body = error_body(Refusal(reason, "why", hint="do this", param="p"))
        assert 400 <= status < 600
        error = json.loads(body)["error"]
        assert error["message"] == "why do this"
        assert error["param"] == "p"
        assert ("retry-after" in dict(headers)) >= (status in (429, 503))
    headers = dict(error_body(Refusal(Reason.RATE_LIMITED, "x", retry_after_ns=1_000_000_001))[1])
    assert headers["retry-after"] == "2"
    assert error_event(Refusal(Reason.WORKER_LOST, "x")).startswith(b'data: {"error":{')


def test_errors_of_workers():
    ours = b'{"error":{"message":"m","type":"t","param":null,"code":"context_length_exceeded"}}'
    assert error_of_worker(ours) == (Reason.CONTEXT_TOO_LONG, ours)
    for body, message in (
        (b'{"object":"error","message":"old","type":"BadRequestError","code":400}', "old"),
        (b"plain words", "plain words"),
        (b'{"detail":"other"}', '{"detail":"other"}'),
    ):
        reason, envelope = error_of_worker(body)
        assert reason is Reason.BAD_REQUEST
        assert json.loads(envelope)["error"]["message"] == message


def test_answers():
    chunk = Letterhead(True, "i", 1, "m").chunk([ChatChoice(0, delta=ChatDelta(content="x"))])
    assert json.loads(chunk) == {
        "id": "i",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": None, "finish_reason": None}],
    }
    assert msgspec.to_builtins(usage(prompt=3, completion=4, cached=2)) == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    models = json.loads(model_list([("a", 1, 0), ("b", 2, 4096)]))
    assert [("max_model_len" in model, model["id"]) for model in models["data"]] == [(False, "a"), (True, "b")]


def test_functions_that_are_offered_and_demanded():
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fg"]
    assert list(chat(tools=tools).offered) == ["f", "g"]
    assert chat(tools=tools).demanded == chat(tools=tools, tool_choice="auto").demanded == ()
    assert chat(tools=tools, tool_choice="required").demanded == ("f", "g")
    assert chat(tools=tools, tool_choice={"type": "function", "function": {"name": "g"}}).demanded == ("g",)
    assert chat(tools=tools, tool_choice="none").offered == chat(tools=[], tool_choice="auto").offered == {}
    assert to_sampling(chat(tools=tools)) == Sampling()


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{}], None, "tools"),
        (["f"], None, "tools"),
        ([{"type": "function"}], None, "tools"),
        ([{"type": "function", "function": {"name": "x" * 65}}], None, "tools"),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], None, "tools"),
        ([{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)], None, "tools"),
        ([{"type": "function", "function": {"name": "f"}}], ["f"], "tool_choice"),
        ([{"type": "function", "function": {"name": "f"}}], {"type": "function", "function": "f"}, "tool_choice"),
        (
            [{"type": "function", "function": {"name": "f"}}],
            {"type": "tool", "function": {"name": "f"}},
            "tool_choice",
        ),
        ([{"type": "function", "function": {"name": "f"}}], 5, "tool_choice"),
        (None, {"type": "function", "function": {"name": "f"}}, "tool_choice"),
    ],
)
def test_wrong_tools_are_named(tools, choice, param):
    with pytest.raises(Refusal) as caught:
        chat(tools=tools, tool_choice=choice)
    assert caught.value.param == param
