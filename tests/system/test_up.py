"""`baseload up` as a person uses it: real processes, a real (tiny) model, kill -9, and nothing lost."""

import contextlib
import http.client
import itertools
import json
import os
import select
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from typer.testing import CliRunner

from baseload.cli.main import app

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "baseload.cli.main"]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("BASELOAD_")}
QUESTION = [{"role": "user", "content": "the quick brown fox"}]


class Up:
    """One `baseload up`, and the commands that talk to it."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [*COMMAND, "up", "--port", "0", "--data-dir", str(data_dir), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRON,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready http://127.0.0.1:"), line + self.rest()[1]
        self.url = line.split()[1]
        self.key = (data_dir / "first-key").read_text().strip()

    def rest(self) -> tuple[str, str]:
        return self.process.communicate(timeout=200)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        out, err = self.rest()
        assert out == "", "only the ready line stands on standard output"
        assert "Traceback" not in err, err
        return self.process.returncode

    def client(self, key: str = "") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=200)

    def ask(self, **changes: Any) -> str:
        with self.client() as client:
            asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 8, "temperature": 0, **changes}
            answer = client.chat.completions.create(**asked)
            return answer.choices[0].message.content or ""

    def json(self, *arguments: str) -> Any:
        """What a command that only asks the running process says; here, for a process of its own takes its time."""
        settings = {name: None for name in os.environ if name not in ENVIRON}
        done = CliRunner().invoke(app, [*arguments, "--data-dir", str(self.data_dir), "--json"], env=settings)
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=ENVIRON, timeout=200, check=False
    )


def workers(data_dir: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "baseload.worker" in words and any(str(data_dir) in word for word in words):
            found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path, cache: Path) -> Iterator[Callable[..., Up]]:
    settings = tmp_path / "baseload.toml"
    settings.write_text(
        f'cache_dir = "{cache}"\nguide = false\nspares = 0\n'
        f'[[models]]\nname = "tiny"\nsource = "{tiny_model}"\nengine.max_context = 256\nengine.max_seqs = 4\n'
    )
    started: list[Up] = []

    def begin(*flags: str) -> Up:
        started.append(Up(tmp_path / "data", "--settings", str(settings), *flags))
        return started[-1]

    yield begin
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        with contextlib.suppress(ValueError):  # communicated already
            up.process.communicate()
    for pid in workers(tmp_path / "data"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_from_the_first_start_to_ctrl_c(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start()
    key_file = tmp_path / "data" / "first-key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert up.json("models", "list")[0]["context_tokens"] == 256

    # A request as curl sends it, without and with a key.
    for key, status in (("", 401), (up.key, 200)):
        connection = http.client.HTTPConnection(up.url.removeprefix("http://"), timeout=200)
        body = json.dumps({"model": "tiny", "messages": QUESTION, "max_tokens": 4})
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        assert answer.status == status
        assert ("choices" if key else "error") in json.loads(answer.read())
        connection.close()

    # The official client, streaming; and the command.
    with up.client() as client:
        stream = client.chat.completions.create(
            model="tiny", messages=QUESTION, max_tokens=8, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    said = up.json("chat", "the quick brown fox", "--model", "tiny", "--max-tokens", "8")
    assert (said["text"], said["completion_tokens"], said["finish_reason"]) == (text, 8, "length")

    # What was asked is in the ledger, and what happened has a reason.
    usage = up.json("usage")
    assert usage["total"]["requests"] == 3
    assert usage["total"]["completion_tokens"] == 4 + 8 + 8
    assert usage["total"]["cold_ns"] > 0
    assert {row["key_name"] for row in usage["rows"]} == {"first key", ""}
    events = run("events", "--data-dir", str(up.data_dir), "--json")
    decisions = [json.loads(line)["body"] for line in events.stdout.splitlines()]
    assert any(one["what"] == "wake" and one["why"] for one in decisions)
    status = up.json("status")
    assert status["running"]
    assert [model["state"] for model in status["models"]] == ["awake"]

    # The dashboard's page and feed are there.
    page = http.client.HTTPConnection(up.url.removeprefix("http://"), timeout=200)
    page.request("GET", "/")
    assert b"<title>Baseload</title>" in page.getresponse().read()
    page.request("GET", "/dashboard/feed", headers={"authorization": f"Bearer {up.key}"})
    assert json.loads(page.getresponse().read())["today"]["requests"] == 3
    page.close()

    assert len(workers(tmp_path / "data")) == 1
    assert up.end(signal.SIGINT) == 0
    assert workers(tmp_path / "data") == []
    assert up.json("usage")["total"]["requests"] == 3, "the folder can be read without a process"


def test_a_fresh_folder_comes_with_a_guide_that_answers(tmp_path: Path, cache: Path) -> None:
    up = Up(tmp_path / "data", "--set", f"cache_dir={cache}")
    try:
        assert [(model["name"], model["state"]) for model in up.json("status")["models"]] == [("guide", "asleep")]
        said = up.json("chat", "How do I scale a model to zero?")
        assert "min_replicas" in said["text"]
        assert said["model"] == "guide"
    finally:
        assert up.end(signal.SIGTERM) == 0
    assert workers(tmp_path / "data") == []


def test_keys_and_models_are_managed_from_the_command_line(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start()
    where = ["--data-dir", str(up.data_dir)]
    made = up.json("keys", "create", "shop", "--model", "tiny", "--rpm", "100")
    with up.client(made["secret"]) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
    fast = up.json("keys", "create", "fast", "--tier", "priority")
    assert {key["name"]: key["tier"] for key in up.json("keys", "list")} == {
        "first key": "default",
        "shop": "default",
        "fast": "priority",
    }
    assert "priority" in run("keys", "list", *where).stdout
    wrong_tier = run("keys", "create", "gold", "--tier", "gold", *where)
    assert (wrong_tier.returncode, "Traceback" in wrong_tier.stderr) == (2, False)
    with up.client(made["secret"]) as client, pytest.raises(openai.PermissionDeniedError, match="--tier priority"):
        client.chat.completions.create(model="tiny", messages=QUESTION, service_tier="priority")
    with up.client(fast["secret"]) as client:
        asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 3}
        said = [client.chat.completions.create(**asked, service_tier=tier) for tier in ("priority", "auto", "flex")]
        assert [answer.service_tier for answer in said] == ["priority", "priority", "flex"]
    refused = run("status", "--url", up.url, "--key", made["secret"])
    assert (refused.returncode, refused.stdout) == (3, ""), "this key may not administer"
    assert "Next:" in refused.stderr
    assert up.json("keys", "revoke", made["key_id"]) == {"revoked": made["key_id"]}
    with up.client(made["secret"]) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert made["key_id"] not in [key["key_id"] for key in up.json("keys", "list")]

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    wrong = run("models", "add", "broken", str(broken), *where)
    assert wrong.returncode == 1
    assert "MambaForCausalLM" in wrong.stderr
    misspelt = run("models", "add", "remote", "http://127.0.0.1:9", "--set", "scaling.min=1", *where)
    assert misspelt.returncode == 2
    assert "scaling.min_replicas" in misspelt.stderr
    up.json("models", "add", "remote", "http://127.0.0.1:9")
    assert [model["name"] for model in up.json("models", "list")] == ["tiny", "remote"]
    up.json("models", "remove", "remote")
    assert run("models", "remove", "remote", *where).returncode == 1
    assert [model["name"] for model in up.json("models", "list")] == ["tiny"]
    table = run("models", "list", *where)
    assert "tiny" in table.stdout


def test_an_idle_model_sleeps_and_a_request_wakes_it(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start("--set", "defaults.scaling.idle_s=0.5")
    before = up.ask()
    follow = subprocess.Popen(
        [*COMMAND, "events", "--follow", "--json", "--data-dir", str(up.data_dir)],
        stdout=subprocess.PIPE,
        env=ENVIRON,
        text=True,
    )
    assert follow.stdout is not None
    decided = (json.loads(line)["body"]["what"] for line in iter(follow.stdout.readline, ""))
    assert "wake" in list(itertools.takewhile(lambda what: what != "sleep", decided))
    follow.terminate()
    follow.communicate()
    assert up.ask() == before, "the same answer after it slept"
    assert up.end(signal.SIGTERM) == 0
    assert workers(tmp_path / "data") == []


def test_kill_9_loses_nothing_and_counts_nothing_twice(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start()
    made = up.json("keys", "create", "shop")
    answers = [up.ask() for _ in range(3)]
    up.process.kill()
    up.rest()
    first_key = up.key
    assert len(workers(tmp_path / "data")) == 1, "the worker lives on without its control process"

    again = start()
    assert again.key == first_key
    assert {key["name"] for key in again.json("keys", "list")} == {"first key", "shop"}
    assert [model["name"] for model in again.json("models", "list")] == ["tiny"]
    assert again.json("usage", "--by", "key")["total"]["requests"] == 3
    status = again.json("status")
    assert [replica["state"] for replica in status["replicas"]] == ["ready"], "the orphan was adopted"
    assert again.ask() == answers[0]
    with again.client(made["secret"]) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
    assert again.json("usage")["total"]["requests"] == 4
    assert again.end(signal.SIGINT) == 0
    assert workers(tmp_path / "data") == []
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "baseload.db")) as db:
        subjects = [row[0] for row in db.execute("SELECT subject FROM entry WHERE kind = 'request'")]
    assert len(subjects) == len(set(subjects)) == 4


def test_kill_9_in_the_middle_of_work_loses_no_answered_request(start: Callable[..., Up], tmp_path: Path) -> None:
    answered: list[str] = []

    def ask_on(up: Up, enough: threading.Event, count: int) -> None:
        """Ask until the system is gone; everything answered whole is noted."""
        before = len(answered)
        body = json.dumps({"model": "tiny", "messages": QUESTION, "max_tokens": 20})
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                connection = http.client.HTTPConnection(up.url.removeprefix("http://"), timeout=200)
                with contextlib.closing(connection):
                    connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {up.key}"})
                    answer = connection.getresponse()
                    if json.loads(answer.read())["usage"]["completion_tokens"]:
                        answered.append(answer.headers["x-request-id"])
                if len(answered) >= before + count:
                    enough.set()

    for count in (1, 7, 30):
        up, enough = start(), threading.Event()
        threads = [threading.Thread(target=ask_on, args=(up, enough, count)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert enough.wait(200)
        up.process.kill()
        up.rest()
        for thread in threads:
            thread.join()
    up = start()
    assert up.json("usage")["total"]["requests"] >= len(answered)
    assert up.end(signal.SIGINT) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "baseload.db")) as db:
        rows = db.execute(
            "SELECT subject, json_extract(body, '$.outcome') FROM entry WHERE kind = 'request'"
        ).fetchall()
    assert len(rows) == len(dict(rows)), "a request was counted twice"
    assert [one for one in answered if dict(rows).get(one) != "ok"] == [], "an answered request is not in the ledger"


class SlowWorker(BaseHTTPRequestHandler):
    """Somebody else's worker: it streams one piece, and the rest only when it may."""

    may_finish: threading.Event

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):  # the gateway may have gone
            self.wfile.write(b'data: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\n\n')
            if self.may_finish.wait(200):
                self.wfile.write(
                    b'data: {"choices": [{"index": 0, "delta": {"content": " and half"}}]}\n\ndata: [DONE]\n\n'
                )
        self.close_connection = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow_worker() -> Iterator[tuple[str, threading.Event]]:
    SlowWorker.may_finish = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowWorker)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", SlowWorker.may_finish
    SlowWorker.may_finish.set()
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def slow_answer(up: Up, upstream: str) -> Iterator[http.client.HTTPResponse]:
    """Ask the slow worker through the gateway, and stop the gateway once the first piece of the answer came."""
    up.json("models", "add", "slow", upstream)
    connection = http.client.HTTPConnection(up.url.removeprefix("http://"), timeout=200)
    body = json.dumps({"model": "slow", "messages": QUESTION, "stream": True})
    connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {up.key}"})
    answer = connection.getresponse()
    assert b"half" in answer.readline()
    up.process.send_signal(signal.SIGINT)
    assert up.process.stderr is not None
    assert any("Stopping: 1 running" in line for line in iter(up.process.stderr.readline, ""))
    yield answer
    answer.close()
    connection.close()


def test_ctrl_c_lets_a_running_request_finish_and_takes_no_new_one(
    start: Callable[..., Up], slow_worker: tuple[str, threading.Event]
) -> None:
    upstream, may_finish = slow_worker
    up = start()
    with slow_answer(up, upstream) as answer:
        with up.client() as client, pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model="slow", messages=QUESTION)  # type: ignore[arg-type]
        assert refused.value.status_code == 503
        may_finish.set()
        rest = answer.read()
    assert b"and half" in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    assert up.rest()[0] == ""
    assert up.process.returncode == 0


def test_a_second_ctrl_c_ends_running_requests(
    start: Callable[..., Up], slow_worker: tuple[str, threading.Event]
) -> None:
    up = start("--set", "drain_s=600")
    with slow_answer(up, slow_worker[0]) as answer:
        up.process.send_signal(signal.SIGINT)
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            assert b"[DONE]" not in answer.read(), "a cut answer must not look whole"
    assert up.rest()[0] == ""
    assert up.process.returncode == 0


def test_what_outlasts_the_drain_is_cut_off_told_and_in_the_ledger(
    start: Callable[..., Up], slow_worker: tuple[str, threading.Event]
) -> None:
    up = start("--set", "drain_s=0.5")
    with slow_answer(up, slow_worker[0]) as answer:
        rest = answer.read()
        request_id = answer.headers["x-request-id"]
    assert b'"code":"shutting_down"' in rest
    assert b"[DONE]" not in rest
    assert up.rest()[0] == ""
    assert up.process.returncode == 0
    done = run("events", "--kind", "request", "--data-dir", str(up.data_dir), "--json")
    (entry,) = [json.loads(line)["body"] for line in done.stdout.splitlines()]
    assert (entry["request_id"], entry["outcome"], entry["reason"]) == (request_id, "failed", "shutting_down")
    assert entry["tokens"]["completion"] == 1, "what was sent is billed"


def test_a_second_one_on_the_same_folder_is_refused(start: Callable[..., Up]) -> None:
    up = start()
    second = run("up", "--port", "0", "--data-dir", str(up.data_dir))
    assert second.returncode == 3
    assert str(up.process.pid) in second.stderr
    assert up.json("status")["running"], "the first one goes on"


@pytest.mark.parametrize(
    ("text", "words"),
    [("prot = 1", "Did you mean port?"), ("port = 'x'", "must be a whole number"), ("port =", "not valid TOML")],
)
def test_wrong_settings_end_before_anything_starts(tmp_path: Path, text: str, words: str) -> None:
    settings = tmp_path / "wrong.toml"
    settings.write_text(text)
    done = run("up", "--settings", str(settings), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert words in done.stderr
    assert "wrong.toml" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = run("up", "--port", port, "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_model_of_the_settings_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    settings = tmp_path / "baseload.toml"
    settings.write_text('port = 0\nguide = false\n[[models]]\nname = "a"\nsource = "nowhere"\n')
    done = run("up", "--settings", str(settings), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert "The model a of the settings cannot be served" in done.stderr
    assert str(tmp_path / "nowhere") in done.stderr


def test_without_a_running_one_commands_say_what_to_do(tmp_path: Path) -> None:
    done = run("status", "--data-dir", str(tmp_path / "nothing"))
    assert done.returncode == 3
    assert "baseload up" in done.stderr
    assert json.loads(run("version", "--json").stdout)["baseload"]
    assert run("statsu").returncode == 2


def test_a_worker_that_was_a_spare_outlives_kill_9_and_an_idle_spare_does_not(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    def warm_spare(up: Up) -> int:
        while True:  # each look is a process of its own: no pause is needed
            warm = [spare["pid"] for spare in up.json("status")["spares"] if spare["is_warm"]]
            if warm:
                return int(warm[0])

    up = start("--set", "spares=1")
    first = warm_spare(up)
    answer = up.ask()
    assert [replica["pid"] for replica in up.json("status")["replicas"]] == [first]
    idle = os.pidfd_open(warm_spare(up))
    up.process.kill()
    up.rest()
    assert select.select([idle], [], [], 60)[0], "a spare without its control process ends"
    os.close(idle)
    again = start()
    assert [replica["pid"] for replica in again.json("status")["replicas"]] == [first]
    assert again.ask() == answer
    assert again.json("status")["spares"] == []
    assert again.end(signal.SIGINT) == 0
    assert workers(tmp_path / "data") == []
