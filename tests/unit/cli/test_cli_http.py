"""The commands' HTTP side against a server that answers as told; and a model's folder checked in its own process."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from baseload.cli.http import HttpDesk, send, stream
from baseload.cli.model_check import check_model
from baseload.domain.errors import BaseloadError, ControlError, ModelError, SettingsError
from baseload.domain.model import ModelSpec
from baseload.domain.tenant import KeyLimits


class Teller(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012
    heard: list[tuple[str, str, str, bytes]] = []  # noqa: RUF012

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.heard.append((self.command, self.path, self.headers["authorization"], body))
        status, answer = self.answers[f"{self.command} {self.path}"]
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Teller.answers, Teller.heard = {}, []
    httpd = HTTPServer(("127.0.0.1", 0), Teller)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


async def test_administration_calls(server: str) -> None:
    key = {
        "key_id": "key_1",
        "name": "a",
        "prefix": "bl-x",
        "created_ns": 1,
        "is_admin": False,
        "models": [],
        "limits": {},
    }
    Teller.answers = {
        "GET /admin/v1/models": (200, b'{"models": [{"name": "guide", "source": "/g"}]}'),
        "PUT /admin/v1/models/org%2Fm": (201, b"{}"),
        "DELETE /admin/v1/models/org%2Fm": (200, b"{}"),
        "GET /admin/v1/keys": (200, json.dumps({"keys": [key]}).encode()),
        "POST /admin/v1/keys": (201, json.dumps({"key": key, "secret": "bl-secret"}).encode()),
        "GET /admin/v1/events?limit=5&kind=decision": (200, b'{"events": []}'),
        "GET /admin/v1/usage": (200, b'{"usage": []}'),
    }
    desk = HttpDesk(server, "bl-admin")
    assert [spec.name for spec in await desk.models()] == ["guide"]
    await desk.put_model(ModelSpec("org/m", "/m"))
    await desk.remove_model("org/m")
    assert [one.key_id for one in await desk.keys()] == ["key_1"]
    made, secret = await desk.create_key("a", is_admin=False, models=["guide"], limits=KeyLimits(max_in_flight=2))
    assert (made.name, secret) == ("a", "bl-secret")
    assert await desk.events(limit=5, kind="decision") == []
    assert await desk.usage() == []
    assert {auth for _, _, auth, _ in Teller.heard} == {"Bearer bl-admin"}
    asked = json.loads(
        next(body for method, path, _, body in Teller.heard if path.endswith("keys") and method == "POST")
    )
    assert asked["models"] == ["guide"]
    assert asked["limits"]["max_in_flight"] == 2


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, b'{"error": {"message": "This key is unknown."}}', ControlError, "This key is unknown."),
        (404, b'{"error": {"message": "There is no model."}}', BaseloadError, "There is no model."),
        (500, b"<html>", BaseloadError, "status 500"),
        (200, b'{"models": 3}', ControlError, "does not understand"),
    ],
)
async def test_refusals_keep_their_words(
    server: str, status: int, body: bytes, kind: type[BaseloadError], words: str
) -> None:
    Teller.answers = {"GET /admin/v1/models": (status, body)}
    with pytest.raises(kind, match=words):
        await HttpDesk(server, "k").models()


async def test_nobody_there_and_no_address() -> None:
    with pytest.raises(ControlError, match="Nothing answers at"):
        await HttpDesk("http://127.0.0.1:1", "k").models()
    with pytest.raises(SettingsError, match="is not an http"):
        send("somewhere", "GET", "/", key="", timeout_s=1)


def test_a_stream_gives_chunks_and_raises_what_breaks_it(server: str) -> None:
    good = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    Teller.answers = {"POST /s": (200, good + b"data: [DONE]\n\n")}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in stream(server, "/s", key="k", body=b"{}")] == ["a"]
    Teller.answers = {"POST /s": (200, good + b'data: {"error": {"message": "worker lost"}}\n\n')}
    with pytest.raises(BaseloadError, match="worker lost"):
        list(stream(server, "/s", key="k", body=b"{}"))


async def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is neither a folder nor a GGUF file"):
        await check_model(ModelSpec("a", str(tmp_path / "nothing")))
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        await check_model(ModelSpec("a", str(tmp_path)))
    remote = ModelSpec("a", "http://127.0.0.1:1")
    assert await check_model(remote) is remote


async def test_truncated_weights_are_refused_before_the_model_is_added(tmp_path: Path, tiny_model: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (weights,) = copy.glob("*.safetensors")
    assert (await check_model(ModelSpec("a", str(copy)))).context_tokens > 0
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    with pytest.raises(ModelError, match="truncated"):
        await check_model(ModelSpec("a", str(copy)))
