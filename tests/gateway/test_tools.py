"""Function calls through the official client, the gateway and a real worker whose tiny model is made to call."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

pytestmark = pytest.mark.system

USER = [{"role": "user", "content": "the quick brown fox"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"warm": {"type": "boolean"}, "day": {"enum": ["now", "then"]}},
            "required": ["warm", "day"],
            "additionalProperties": False,
        },
    },
}
ADD = {"type": "function", "function": {"name": "add", "strict": True}}
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{{ c.function.arguments.warm }}</tool_call>{% endfor %}{% endfor %}"
)
SPEC = {"dtype": "float32", "max_seqs": 4, "max_step_tokens": 64, "kv_cache_bytes": 1 << 20}


@pytest.fixture(scope="module")
def urls(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A worker of a model that can call functions, and one of a model whose template knows of none."""
    folder = tmp_path_factory.mktemp("callers")
    shutil.copytree(tiny_model, folder / "caller")
    config = json.loads((folder / "caller" / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "caller" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "caller" / "chat_template.jinja").write_text(TEMPLATE)
    processes, found = [], {}
    for name, model in (("caller", folder / "caller"), ("tiny", tiny_model)):
        command = [sys.executable, "-m", "baseload.worker", "--model", str(model), "--name", name]
        command += ["--cache-dir", str(folder / "cache"), "--spec-json", json.dumps(SPEC)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        found[name] = json.loads(processes[-1].stdout.readline())["ready"]
    yield found
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def callers(house, urls):
    for name, url in urls.items():
        house.put(name, url)
    return house


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_demanded_call_is_made_whole_and_streamed(callers, choice):
    create = callers.openai.chat.completions.create
    tools = [WEATHER, ADD] if isinstance(choice, dict) else [WEATHER]
    fixed = {"model": "caller", "messages": USER, "tools": tools, "tool_choice": choice, "seed": 5, "max_tokens": 200}
    (whole,) = (await create(**fixed)).choices
    (call,) = whole.message.tool_calls
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    assert (call.type, call.function.name) == ("function", "weather")
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments["warm"], bool)
    assert arguments["day"] in ("now", "then")
    chunks = [chunk async for chunk in await create(**fixed, stream=True, stream_options={"include_usage": True})]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    (streamed,) = [one for delta in deltas for one in delta.tool_calls or []]
    assert (streamed.index, streamed.type, streamed.id[:5]) == (0, "function", "call_")
    assert streamed.function == type(streamed.function)(name="weather", arguments=call.function.arguments)
    assert deltas[0].role == "assistant"
    assert not any(delta.content for delta in deltas)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens > 0
    helper = callers.openai.chat.completions.stream(**fixed)
    async with helper as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


async def test_results_go_back_and_a_model_that_is_free_answers_in_text(callers):
    create = callers.openai.chat.completions.create
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"warm": true}'}}
    history = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "the dog"},
    ]
    fixed = {"model": "caller", "messages": history, "seed": 1, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
    with_tools = await create(**fixed, tools=[WEATHER, ADD])
    without = await create(**fixed, tools=[WEATHER, ADD], tool_choice="none")
    assert with_tools.choices[0].message.tool_calls is None
    assert with_tools.choices[0].message.content
    assert with_tools.choices[0].finish_reason == "length"
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens, "the template is shown the functions"
    chunks = [chunk async for chunk in await create(**fixed, tools=[WEATHER, ADD], stream=True)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == with_tools.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    call["function"]["arguments"] = "{not json"
    with pytest.raises(openai.BadRequestError) as refused:
        await create(**fixed)
    assert refused.value.param == "messages[1].tool_calls[0].function.arguments"


async def test_a_model_that_cannot_call_says_so(callers):
    create = callers.openai.chat.completions.create
    with pytest.raises(openai.BadRequestError, match="cannot call tools") as refused:
        await create(model="tiny", messages=USER, tools=[ADD])
    assert refused.value.param == "tools"
    assert (await create(model="tiny", messages=USER, tools=[ADD], tool_choice="none", max_tokens=2)).choices


async def test_a_schema_that_cannot_be_kept_to_is_refused_by_name(callers):
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(openai.BadRequestError, match="schema of a function's arguments") as refused:
            await callers.openai.chat.completions.create(
                model="caller", messages=USER, tools=[bad], tool_choice=choice
            )
        assert refused.value.param == "tools"
