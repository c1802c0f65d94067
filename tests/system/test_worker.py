"""The real worker process, serving a tiny random model."""

import codecs
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system

SPEC = {"dtype": "float32", "max_seqs": 4, "max_step_tokens": 64, "max_waiting": 8, "kv_cache_bytes": 1 << 20}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the quick brown fox jumps over the dog"}]}
WAIT_S = 60.0


@dataclass
class Worker:
    """A running worker."""

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = self.connect()
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, raw)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, json.loads(text) if is_json else text.decode()

    def stream(self, path: str, body: dict[str, Any]) -> Generator[Any, None, None]:
        """The events; closing the generator closes the connection."""
        connection = self.connect()
        connection.request("POST", path, json.dumps({**body, "stream": True}))
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")

        def events() -> Generator[Any, None, None]:
            try:
                while line := response.readline():
                    if line.startswith(b"data: "):
                        data = line[6:].strip()
                        yield data.decode() if data == b"[DONE]" else json.loads(data)
            finally:
                response.close()
                connection.close()

        return events()


Start = Callable[..., Worker]


@pytest.fixture(scope="module")
def start(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    cache = tmp_path_factory.mktemp("cache")
    processes: list[subprocess.Popen[str]] = []

    def begin(*more: str, program: tuple[str, str] = ("-m", "baseload.worker")) -> Worker:
        command = [sys.executable, *program, "--model", str(tiny_model), "--name", "tiny"]
        command += ["--cache-dir", str(cache), "--replica-id", "r1", "--spec-json", json.dumps(SPEC), *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return Worker(process, int(json.loads(line)["ready"].rpartition(":")[2]))

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def worker(start: Start) -> Worker:
    return start()


def joined(events: list[Any], index: int = 0) -> str:
    chunks = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in chunks if choice["index"] == index)


def test_it_says_who_it_is(worker: Worker) -> None:
    status, body = worker.ask("GET", "/health")
    assert (status, body["status"], body["model"], body["replica_id"]) == (200, "ok", "tiny", "r1")
    assert body["pid"] == worker.process.pid
    status, body = worker.ask("GET", "/v1/models")
    assert [(card["id"], card["max_model_len"]) for card in body["data"]] == [("tiny", 512)]
    status, body = worker.ask("POST", "/tokenize", {"prompt": "the dog", "add_special_tokens": False})
    assert status == 200
    assert body["count"] == len(body["tokens"]) > 0


def test_a_stream_is_one_event_per_token_then_usage(worker: Worker) -> None:
    asked = {**CHAT, "max_tokens": 9, "seed": 5, "ignore_eos": True, "stream_options": {"include_usage": True}}
    runs = []
    for _ in range(2):
        events = worker.stream("/v1/chat/completions", asked)
        runs.append(list(events))
        assert runs[-1][-1] == "[DONE]"
        usage = runs[-1][-2]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 9
        assert set(usage["baseload"]) == {"queue_ns", "prefill_ns", "decode_ns"}
        chunks = [event["choices"][0] for event in runs[-1][:-2]]
        assert len(chunks) == 9
        assert [chunk["finish_reason"] for chunk in chunks] == [None] * 8 + ["length"]
        assert chunks[0]["delta"]["role"] == "assistant"
        assert all("role" not in chunk["delta"] for chunk in chunks[1:])
    assert joined(runs[0]) == joined(runs[1])
    assert runs[1][-2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    status, whole = worker.ask("POST", "/v1/chat/completions", {**asked, "stream_options": None})
    assert status == 200
    assert whole["choices"][0]["message"]["content"] == joined(runs[0])
    assert whole["usage"] == runs[1][-2]["usage"]
    assert whole["baseload"]["decode_ns"] > 0


def test_choices_and_logprobs(worker: Worker) -> None:
    asked = {**CHAT, "max_tokens": 6, "seed": 1, "n": 3, "logprobs": True, "top_logprobs": 4, "ignore_eos": True}
    status, body = worker.ask("POST", "/v1/chat/completions", asked)
    assert status == 200
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3
    for choice in body["choices"]:
        tokens = choice["logprobs"]["content"]
        assert len(tokens) == 6
        raw = b"".join(bytes(token["bytes"]) for token in tokens)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(
            raw
        )  # half a character at the end is not shown
        assert choice["message"]["content"] == text
        for token in tokens:
            assert len(token["top_logprobs"]) == 4
            assert token["logprob"] <= token["top_logprobs"][0]["logprob"] <= 0
    assert body["usage"]["completion_tokens"] == 18
    asked = {"model": "tiny", "prompt": ["the dog", "a fox"], "max_tokens": 4, "logprobs": 2, "seed": 0}
    status, body = worker.ask("POST", "/v1/completions", {**asked, "ignore_eos": True})
    assert status == 200
    assert len(body["choices"]) == 2
    for choice in body["choices"]:
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 4
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
            assert 1 <= len(top) <= 3
            assert token in top


def test_stop_strings(worker: Worker) -> None:
    asked = {"model": "tiny", "prompt": "the lazy", "max_tokens": 40, "seed": 3, "ignore_eos": True}
    _, body = worker.ask("POST", "/v1/completions", asked)
    text = body["choices"][0]["text"]
    stop = text[10:13]
    _, body = worker.ask("POST", "/v1/completions", {**asked, "stop": [stop]})
    assert body["choices"][0]["text"] == text[: text.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"
    events = worker.stream("/v1/completions", {**asked, "stop": stop})
    shown = "".join(event["choices"][0]["text"] for event in events if event != "[DONE]")
    assert shown == text[: text.index(stop)]


def test_structured_output(worker: Worker) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["ok", "size"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    asked = {**CHAT, "max_tokens": 300, "n": 3, "seed": 2, "response_format": response_format}
    status, body = worker.ask("POST", "/v1/chat/completions", asked)
    assert status == 200
    for choice in body["choices"]:
        assert choice["finish_reason"] == "stop"
        value = json.loads(choice["message"]["content"])
        assert isinstance(value["ok"], bool)
        assert value["size"] in ("small", "large")


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_json", None),
        ("/v1/chat/completions", {**CHAT, "model": "other"}, 404, "model_not_found", "model"),
        ("/v1/chat/completions", {**CHAT, "temperature": 3}, 400, "invalid_value", "temperature"),
        ("/v1/chat/completions", {**CHAT, "logit_bias": {"99999": 1}}, 400, "invalid_value", "logit_bias"),
        (
            "/v1/chat/completions",
            {"model": "tiny", "messages": [{"role": "odd", "content": ""}]},
            400,
            None,
            "messages",
        ),
        ("/v1/completions", {"model": "tiny", "prompt": [99999]}, 400, "invalid_value", "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": ""}, 400, "invalid_value", "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "n": 13}, 400, "invalid_value", "n"),
        (
            "/v1/completions",
            {"model": "tiny", "prompt": "x", "guided_regex": "(["},
            400,
            "invalid_value",
            "structured_outputs.regex",
        ),
        ("/nowhere", {}, 404, "unknown_url", None),
        ("/health", {}, 405, "method_not_allowed", None),
    ],
)
def test_refusals(worker: Worker, path: str, body: object, status: int, code: str | None, param: str | None) -> None:
    got, answer = worker.ask("POST", path, body)
    error = answer["error"]
    assert (got, error["param"]) == (status, param)
    assert code is None or error["code"] == code


def test_a_prompt_beyond_the_context_is_refused_with_numbers(worker: Worker) -> None:
    long = {**CHAT, "messages": [{"role": "user", "content": "xyzzy " * 400}]}
    status, body = worker.ask("POST", "/v1/chat/completions", long)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    found = re.search(r"maximum context length is 512 tokens.*resulted in (\d+) tokens", body["error"]["message"])
    assert found is not None
    assert int(found[1]) > 511
    status, body = worker.ask("POST", "/v1/completions", {"model": "tiny", "prompt": [5] * 600})
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert "600 in your prompt; 16 for the completion" in body["error"]["message"]


def test_without_a_limit_an_answer_ends_where_the_context_does(worker: Worker) -> None:
    asked = {**CHAT, "ignore_eos": True, "temperature": 0}
    _, body = worker.ask("POST", "/v1/chat/completions", asked)
    assert body["usage"]["total_tokens"] == 512
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_client_that_goes_frees_its_slots(start: Start, unhurried_worker: tuple[str, str]) -> None:
    worker = start(program=unhurried_worker)
    before = worker.ask("GET", "/stats")[1]
    asked = {**CHAT, "n": 4, "max_tokens": 450, "ignore_eos": True}
    events = worker.stream("/v1/chat/completions", asked)
    next(events)
    assert worker.ask("GET", "/stats")[1]["running"] > 0
    events.close()
    deadline = time.monotonic() + WAIT_S
    while (now := worker.ask("GET", "/stats")[1])["running"] or now["kv_usage"]:
        assert time.monotonic() < deadline
    assert now["completion_tokens"] - before["completion_tokens"] < 4 * 450
    page = worker.ask("GET", "/metrics")[1]
    assert 'vllm:request_success_total{model_name="tiny",finished_reason="abort"} 1' in page


def test_metrics_have_vllms_names(worker: Worker) -> None:
    worker.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 3, "ignore_eos": True})
    page = worker.ask("GET", "/metrics")[1]
    samples = dict(re.findall(r'^(\S+?)\{model_name="tiny"\} (\S+)$', page, re.MULTILINE))
    assert samples["vllm:num_requests_running"] == samples["vllm:num_requests_waiting"] == "0"
    assert 0.0 <= float(samples["vllm:kv_cache_usage_perc"]) <= 1.0
    assert int(samples["vllm:generation_tokens_total"]) >= 3
    assert int(samples["vllm:prompt_tokens_total"]) >= 1
    for name in ("time_to_first_token", "time_per_output_token"):
        assert int(samples[f"vllm:{name}_seconds_count"]) >= 1
    assert int(samples["vllm:e2e_request_latency_seconds_count"]) >= 1
    stats = worker.ask("GET", "/stats")[1]
    assert stats["completion_tokens"] == int(samples["vllm:generation_tokens_total"])
    assert set(stats) == {"running", "waiting", "kv_usage", "prompt_tokens", "completion_tokens"}


def test_sigterm_lets_running_requests_finish(start: Start, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    worker = start("--ready-file", str(ready))
    assert json.loads(ready.read_text()) == {"ready": f"http://127.0.0.1:{worker.port}"}
    asked = {**CHAT, "max_tokens": 400, "ignore_eos": True, "seed": 1}
    events = worker.stream("/v1/chat/completions", asked)
    first = next(events)
    worker.process.send_signal(signal.SIGTERM)
    rest = list(events)
    assert rest[-1] == "[DONE]"
    assert len([event for event in [first, *rest[:-1]] if event["choices"]]) == 400
    assert worker.process.wait(WAIT_S) == 0
    with pytest.raises(ConnectionRefusedError):
        worker.ask("GET", "/health")


def test_a_model_that_cannot_be_served_ends_the_worker(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["OddForCausalLM"], "model_type": "odd"}')
    command = [sys.executable, "-m", "baseload.worker", "--model", str(tmp_path), "--name", "odd"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    assert "OddForCausalLM" in done.stderr
    assert done.stdout == ""


def test_an_engine_that_fails_for_good_ends_the_worker_and_says_why(tiny_model: Path) -> None:
    code = (
        "import os, sys\n"
        "from baseload.engine.runner import Runner\n"
        "from baseload.worker.__main__ import main\n"
        "def broken(self, spans):\n"
        "    raise RuntimeError('the accelerator is gone')\n"
        "Runner.run = broken\n"
        "Runner.warm = lambda self: None\n"
        f"os._exit(main(['--model', {str(tiny_model)!r}, '--name', 'tiny']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = Worker(process, int(json.loads(process.stdout.readline())["ready"].rpartition(":")[2]))
    for _ in range(3):
        status, body = worker.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "a"})
        assert (status, body["error"]["code"]) == (502, "worker_error")
    assert process.wait(WAIT_S) == 1
    assert "the accelerator is gone" in process.communicate()[1]
