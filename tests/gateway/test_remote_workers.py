"""Workers at a URL that need an API key, and https with certificates of their own; secrets stay where they are."""

import asyncio
import json
import logging
import os
import ssl
from pathlib import Path

import openai
import pytest

from baseload.cli.remotes import Secrets, check_remote
from baseload.cli.settings import take_secrets
from baseload.domain.errors import SettingsError
from baseload.domain.events import DispatchFailed, ModelPut
from baseload.domain.model import Admission, ModelSpec, Remote
from baseload.wire.journal import encode_event

SECRET, OTHER = "sk-the-workers-own-7f3a", "sk-exchanged-91c0"
TLS = Path(__file__).parent / "tls"
USER = [{"role": "user", "content": "hello there"}]


def secret_file(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "CLOUD"
    path.write_text(text)
    path.chmod(mode)
    return path


async def ask(house, model: str = "cloud") -> str:
    answer = await house.openai.chat.completions.create(model=model, messages=USER)
    return answer.choices[0].message.content


def put(house, secret: str, *, ca_file: str = "", source: str = "") -> None:
    spec = ModelSpec(
        "cloud",
        source or house.worker.url,
        remote=Remote(secret=secret, ca_file=ca_file),
        admission=Admission(max_attempts=1),
    )
    house.control.tell(ModelPut(spec))


async def test_the_workers_own_key_goes_to_it_alone_and_is_written_nowhere(house, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    house.gateway.secret_line = Secrets(tmp_path, {"CLOUD": SECRET}).line
    put(house, "cloud")
    assert await ask(house) == "hello there"
    stream = await house.openai.chat.completions.create(model="cloud", messages=USER, stream=True)
    assert len([chunk async for chunk in stream]) > 1
    assert [one.headers["authorization"] for one in house.worker.seen] == [f"Bearer {SECRET}"] * 2
    assert await ask(house, "m") == "hello there"
    assert "authorization" not in house.worker.seen[-1].headers, "neither the secret nor the client's key"
    reply = await house.client.request(
        "GET", f"{house.url}/admin/v1/models", headers=[("authorization", f"Bearer {house.admin_secret}")]
    )
    assert b'"secret":"cloud"' in reply.body
    journal = b"".join(encode_event(event) for _, event, _ in house.control.journal)
    for written in (reply.body, journal, caplog.text.encode(), house.control.machine.snapshot()):
        assert SECRET.encode() not in written


async def test_a_secret_of_a_file_can_be_exchanged_while_all_runs(house, tmp_path):
    path = secret_file(tmp_path / "secrets", f"{SECRET}\n")
    house.gateway.secret_line = Secrets(tmp_path / "secrets", {}).line
    put(house, "CLOUD")
    await ask(house)
    path.write_text(OTHER)
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))
    await ask(house)
    sent = [one.headers["authorization"] for one in house.worker.seen]
    assert sent == [f"Bearer {SECRET}", f"Bearer {OTHER}"]


async def test_a_secret_that_is_missing_is_named_and_the_worker_is_not_asked(house, tmp_path):
    house.gateway.secret_line = Secrets(tmp_path, {}).line
    put(house, "CLOUD")
    with pytest.raises(openai.APIStatusError) as refused:
        await ask(house)
    assert refused.value.status_code == 502
    assert house.worker.seen == []
    failed = [event for _, event, _ in house.control.journal if isinstance(event, DispatchFailed)]
    assert "There is no secret CLOUD" in failed[0].detail


async def test_a_secret_goes_to_no_other_address_than_its_models(house, tmp_path):
    house.gateway.secret_line = Secrets(tmp_path, {"CLOUD": SECRET}).line
    elsewhere = await house.new_worker()
    put(house, "cloud")
    request = {"model": "cloud", "messages": [{"role": "user", "content": "hang"}]}
    asked = asyncio.create_task(house.openai.chat.completions.create(**request))
    await house.worker.arrived.wait()
    put(house, "", source=elsewhere.url)  # while a request to the old address is under way
    assert await ask(house) == "hello there"
    assert "authorization" not in elsewhere.seen[0].headers
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("sk-x", 0o644, "can be read by others"),
        ("", 0o600, "holds no secret"),
        ("two words", 0o600, "holds no secret"),
        ("a\nb", 0o600, "holds no secret"),
        ("schlüssel", 0o600, "holds no secret"),
        ("x" * 9000, 0o600, "holds no secret"),
    ],
)
def test_secrets_that_cannot_be_used_are_refused_without_quoting_them(tmp_path, text, mode, words):
    secret_file(tmp_path / "s", text, mode=mode)
    with pytest.raises(SettingsError, match=words) as refused:
        Secrets(tmp_path / "s", {}).line("CLOUD")
    assert not text or text not in str(refused.value)


def test_secrets_of_the_environment_are_taken_out_of_it():
    environ = {"BASELOAD_SECRET_CLOUD": f"{SECRET}\n", "BASELOAD_SECRET_b": "x", "PATH": "/bin"}
    assert take_secrets(environ) == {"CLOUD": SECRET, "B": "x"}
    assert environ == {"PATH": "/bin"}
    with pytest.raises(SettingsError, match="BASELOAD_SECRET_BAD holds no secret") as refused:
        take_secrets({"BASELOAD_SECRET_BAD": "a b"})
    assert "a b" not in str(refused.value)


async def answer_in_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One chat answer that quotes the key it was asked with."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(headers["content-length"]))
    message = {"role": "assistant", "content": headers.get("authorization", "no key")}
    body = json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "cloud",
         "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
         "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
    ).encode()  # fmt: skip
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
    writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def test_https_with_a_certificate_that_the_model_names(house, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    server = await asyncio.start_server(answer_in_tls, "127.0.0.1", 0, ssl=context)
    source = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    house.gateway.secret_line = Secrets(tmp_path, {"CLOUD": SECRET}).line
    async with server:
        put(house, "cloud", source=source)
        with pytest.raises(openai.APIStatusError):
            await ask(house)  # nobody vouches for it
        failed = [event for _, event, _ in house.control.journal if isinstance(event, DispatchFailed)]
        assert "certificate" in failed[0].detail.lower()
        put(house, "cloud", source=source + "/", ca_file=str(TLS / "cert.pem"))
        assert await ask(house) == f"Bearer {SECRET}"


async def test_what_a_remote_model_needs_is_looked_for_when_it_is_added(tmp_path):
    secrets = Secrets(tmp_path, {"CLOUD": SECRET})
    good = ModelSpec("m", "https://x.example", remote=Remote("cloud", str(TLS / "cert.pem")))
    assert await check_remote(good, secrets) == good
    for remote, words in (
        (Remote("nothing"), "There is no secret nothing"),
        (Remote("", str(tmp_path / "none.pem")), "none.pem cannot be read: No such file"),
        (Remote("", str(TLS / "key.pem")), "cannot be read"),
    ):
        with pytest.raises(SettingsError, match=words):
            await check_remote(ModelSpec("m", "https://x.example", remote=remote), secrets)
