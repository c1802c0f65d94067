"""Requests to counts, hashes and the worker's bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.domain.errors import Refusal
from baseload.domain.work import Endpoint
from baseload.gateway.intake import prefix_hashes, take_in, with_usage


def chat(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 400}], **fields}).encode()


def test_counts():
    intake = take_in(Endpoint.CHAT, chat(n=3, max_tokens=10))
    assert (intake.model, intake.stream, intake.n) == ("m", False, 3)
    assert (intake.prompt_tokens_estimate, intake.max_tokens) == (104, 30)
    assert take_in(Endpoint.CHAT, chat()).max_tokens == 512
    many = take_in(Endpoint.COMPLETIONS, b'{"model":"m","prompt":[[1,2],[3]],"n":2}')
    assert (many.n, many.prompt_tokens_estimate, many.max_tokens) == (4, 3, 64)
    wide = take_in(Endpoint.COMPLETIONS, '{"model":"m","prompt":"ééé"}'.encode())
    assert wide.prompt_tokens_estimate == 2
    tools = [{"type": "function", "function": {"name": "f", "description": "y" * 400}}]
    assert 104 + 100 < take_in(Endpoint.CHAT, chat(tools=tools)).prompt_tokens_estimate < 104 + 130
    assert take_in(Endpoint.CHAT, chat(tools=tools, tool_choice="none")).prompt_tokens_estimate == 104
    with pytest.raises(Refusal):
        take_in(Endpoint.CHAT, b"{}")


def test_the_body_is_the_same_bytes_unless_usage_must_be_asked_for():
    for body in (chat(), chat(stream=False), chat(stream=True, stream_options={"include_usage": True})):
        assert take_in(Endpoint.CHAT, body).body is body
    intake = take_in(Endpoint.CHAT, chat(stream=True))
    assert intake.withhold_usage
    assert intake.body.endswith(chat(stream=True)[1:])


_options = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {}, optional={"include_usage": st.sampled_from([True, False, None]), "other": st.integers()}
    ),
)


@given(
    st.dictionaries(st.text(max_size=20), st.integers() | st.text(max_size=9) | st.none(), max_size=5),
    st.just(0) | _options,
    st.sampled_from(["", " ", "\n\t "]),
)
def test_with_usage_changes_nothing_else(fields, options, space):
    fields = {"model": "m", **fields}
    fields.pop("stream_options", None)
    if options != 0:
        fields["stream_options"] = options
    asked = json.loads(with_usage((space + json.dumps(fields)).encode()))
    expected = dict(options or {})
    expected["include_usage"] = True
    assert asked.pop("stream_options") == expected
    fields.pop("stream_options", None)
    assert asked == fields


def test_an_escaped_name_is_found():
    body = b'{"stream\\u005foptions":{"include_usage":false},"model":"m"}'
    assert json.loads(with_usage(body))["stream_options"] == {"include_usage": True}


@given(st.text(max_size=700), st.text(max_size=700), st.text(max_size=700))
def test_equal_beginnings_have_equal_hashes(start, one, two):
    a, b = prefix_hashes(start + one), prefix_hashes(start + two)
    same = sum(length <= len(start.encode("utf-8", "surrogatepass")) for length in (256, 512, 1024))
    assert a[:same] == b[:same]


def test_hashes():
    assert prefix_hashes("x" * 255) == ()
    assert len(prefix_hashes("x" * 1023)) == 2
    assert len(prefix_hashes("x" * 100_000)) == 8
    assert prefix_hashes("x" * 300) != prefix_hashes("y" + "x" * 299)
    assert prefix_hashes("a" * 256) == (prefix_hashes("a" * 600)[0],)
    assert all(0 <= one < 2**63 for one in prefix_hashes("z" * 40_000))
