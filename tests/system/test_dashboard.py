"""The dashboard in a real headless Chromium, over the real server and feed, on a control with known figures.

Chromium is driven through its remote-debugging pipe (NUL-ended JSON on two file descriptors), so no driver and no
websocket library is needed. `KEEP_SCREENSHOTS=FOLDER` keeps the screenshots.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.fleet import ReplicaState, WorkerSample
from baseload.domain.model import ModelSpec, Price
from baseload.domain.status import ControlStatus, ModelStatus, ReplicaStatus
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Tier
from baseload.net.server import Exchange, serve
from baseload.web.feed import Feed
from baseload.web.pages import Dashboard

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
ADMIN, GUEST = "bl-admin", "bl-guest"
START_NS = 1_800_000_000 * NS_PER_S

pytestmark = [
    pytest.mark.system,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install chromium to test the dashboard in a browser"),
]


class FakeControl:
    """A control with figures chosen to be recognised: one model awake, one asleep, one failing."""

    def __init__(self) -> None:
        self.ticks = 0
        self.empty = False

    def now_ns(self) -> int:
        return START_NS + self.ticks * NS_PER_S

    def key_by_hash(self, digest: str) -> Key | None:
        for secret in (ADMIN, GUEST):
            if hashlib.sha256(secret.encode()).hexdigest() == digest:
                return Key("key_000000000000", secret, digest, 0, is_admin=secret == ADMIN)
        return None

    def keys(self) -> list[Key]:
        if self.empty:
            return [Key("key_000000000000", "first key", "", 0, is_admin=True, prefix="bl-aB3x")]
        first = Key("key_1", "first key", "", 0, is_admin=True, prefix="bl-aB3x", tier=Tier.PRIORITY)
        return [first, Key("key_2", "nightly reports", "", 0, prefix="bl-Zk9q", tier=Tier.FLEX)]

    def models(self) -> list[ModelSpec]:
        names = [] if self.empty else ["guide", "llama-3.2-1b", "broken"]
        return [ModelSpec(name=name, source="/models", price=Price(usd_per_hour=0.25)) for name in names]

    def status(self) -> ControlStatus:
        self.ticks += 1
        now = self.now_ns()
        wave = [120, 240, 310, 180, 90, 260][self.ticks % 6]
        sample = WorkerSample(running=3, kv_usage=0.42, completion_tokens=self.ticks * 200 + wave)
        replica = ReplicaStatus(
            "llama-3.2-1b-7f3a", "llama-3.2-1b", ReplicaState.READY, "http://127.0.0.1:1", 4242, now - 95 * NS_PER_S,
            now - 97 * NS_PER_S, 3, sample, 2_100_000_000, 60 * NS_PER_S, 30 * NS_PER_S, 28.5, "modelled",
        )  # fmt: skip
        second = msgspec.structs.replace(
            replica, replica_id="llama-3.2-1b-91c0", state=ReplicaState.STARTING, in_flight=0, sample=WorkerSample(),
            since_ns=now - 2 * NS_PER_S, power_w=30.0, cold_ns=2 * NS_PER_S,
        )  # fmt: skip
        failed = "exit code 1: model.safetensors ends after 512 of 1024 bytes"
        models = (
            ModelStatus("guide", "asleep", 0, 0, 0, 0, 0, 0, 0, 0, 0, "", 12, 340, 900),
            ModelStatus("llama-3.2-1b", "awake", 2, 1, 1, 0, 2, 1_200_000_000, 3, 0, 0, "", 1840, 912_345, 401_222),
            ModelStatus(
                "broken", "backing off", 1, 0, 0, 0, 1, 9 * NS_PER_S, 0, 3, now + 8 * NS_PER_S, failed, 0, 0, 0
            ),
        )
        if self.empty:
            return ControlStatus(now, START_NS, 1, "p1", (), (), 0, 0, 1, 0, 0, False)
        return ControlStatus(
            now, START_NS - 7200 * NS_PER_S, 1, "p1", models, (replica, second), 3, 3, 2, 1852, 4, False
        )

    async def usage(self, *, from_day: str = "", to_day: str = "") -> list[UsageRow]:
        if self.empty:
            return []
        row = UsageRow(
            from_day, "key_1", "first key", "llama-3.2-1b", 1852, 4, 913_000, 120_000, 402_000, 4000 * NS_PER_S,
            1500 * NS_PER_S, 60 * NS_PER_S, 386_000_000, 150_000_000_000, "modelled", "default",
        )  # fmt: skip
        urgent = UsageRow(
            from_day, "key_1", "first key", "guide", 41, 0, 0, 0, 0, 0, 0, 0, 0, 0, "modelled", "priority"
        )
        return [row, urgent]

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> list[JournalRow]:
        rows = [
            (
                3600,
                "sleep",
                "guide",
                "No request for 5 minutes, so its last replica stops. The next request wakes it.",
            ),
            (97, "wake", "llama-3.2-1b", "A request came while it was asleep."),
            (40, "backoff", "broken", "Its worker crashed 3 times in a row; the next start waits 8 s."),
            (2, "scale_up", "llama-3.2-1b", "The oldest request has waited 1.2 s, longer than 0.5 s."),
        ]
        return [] if self.empty else [
            JournalRow(n, self.now_ns() - ago * NS_PER_S, "decision", name, {"what": what, "model": name, "why": why})
            for n, (ago, what, name, why) in enumerate(rows)
        ]  # fmt: skip


class Browser:
    """A Chromium page over the debugging pipe."""

    def __init__(self, profile: Path) -> None:
        to_read, self._to = os.pipe()
        from_fd, to_write = os.pipe()
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._from = os.fdopen(from_fd, "rb", buffering=0)
        self._buffer = b""
        self._next_id = 0
        self._session = ""
        self.outside: list[str] = []  # requests to anywhere but the server
        self.complaints: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._next_id:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def run(self, script: str) -> Any:
        wrapped = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **wrapped)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Return once the condition holds: the page itself watches for it."""
        holds = f"(() => {{ try {{ return {condition} }} catch {{ return false }} }})()"
        self.run(
            f"new Promise((yes, no) => {{ const end = setTimeout(() => no({json.dumps(condition)}), 100000); "
            f"const look = () => {holds} ? (clearTimeout(end), yes()) : requestAnimationFrame(look); look() }})"
        )

    def screenshot(self, path: Path, *, width: int, height: int, dark: bool) -> bytes:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        image = base64.b64decode(
            self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        )
        path.write_bytes(image)
        return image

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            os.write(self._to, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        self._from.close()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = self._from.read(65536)
            assert more, "Chromium ended"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("http://127.0.0.1", "data:", "about:")):
                self.outside.append(url)
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and "Content Security" in params["entry"]["text"]:
            self.complaints.append(params["entry"]["text"])


def answer_chat(exchange: Exchange) -> None:
    """Stands for the gateway: streams two words, or refuses as the real one would."""
    if json.loads(exchange.body)["messages"][0]["content"] == "refuse me":
        exchange.respond(503, b'{"error": {"message": "The queue is full.", "code": "queue_full"}}')
        return
    exchange.start(200, content_type="text/event-stream")
    for word in ("Set ", "min_replicas to 0."):
        chunk = {"choices": [{"index": 0, "delta": {"content": word}}]}
        exchange.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    exchange.end(b"data: [DONE]\n\n")


@contextlib.asynccontextmanager
async def page_server(control: FakeControl) -> AsyncIterator[str]:
    feed = Feed(control, version="0.0.test", step_s=0.02)  # type: ignore[arg-type]
    dashboard = Dashboard(control, feed)  # type: ignore[arg-type]
    server = await serve(
        lambda exchange: dashboard.handle(exchange) if dashboard.takes(exchange.path) else answer_chat(exchange),
        host="127.0.0.1",
        port=0,
    )
    feed.open()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await dashboard.close()
        await feed.close()
        await server.close()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    kept = Path(os.environ.get("KEEP_SCREENSHOTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def look_around(url: str, profile: Path, shots: Path) -> None:
    browser = Browser(profile)
    try:
        # The door: no key, a wrong key, a key without rights.
        browser.call("Page.navigate", url=url)
        browser.until("document.readyState == 'complete' && document.activeElement.id == 'key'")
        assert browser.run("getComputedStyle(document.querySelector('.room')).display") == "none"
        browser.screenshot(shots / "door.png", width=1200, height=800, dark=False)
        for secret, words in (("bl-wrong", "revoked"), (GUEST, "admin key")):
            browser.run(f"document.getElementById('key').value = '{secret}'; $('door-form').requestSubmit()")
            browser.until(f"$('door-error').textContent.includes('{words}')")
        assert browser.run("sessionStorage.length") == 0

        # A key in the fragment opens it and leaves the address bar.
        browser.call("Page.navigate", url=f"{url}/?again#key={ADMIN}")
        browser.until("document.body.dataset.view == 'open' && $('models').children.length == 3")
        assert browser.run("location.hash") == ""
        browser.until("document.querySelectorAll('#s-tokens .line')[0].getAttribute('d').split('L').length > 30")
        seen = browser.run("document.querySelector('main').innerText")
        for words in (
            "One awake, one asleep and one failing to start.",
            "Three requests waiting, three running",
            "It costs $0.50 an hour.",
            "Asleep: it costs nothing. Send it a request and it wakes.",
            "Its worker failed 3 times in a row. Next try in 8 s",

            "ends after 512 of 1024 bytes", "KV cache 42 % in use", "modelled", "The oldest request has waited 1.2 s",
            "1,893", "1,852 default", "41 priority", "nightly reports", "flex", "bl-Zk9q…",
            "$0.29 per million tokens", "8.8 tokens per joule", "Woke · llama-3.2-1b",
        ):  # fmt: skip
            assert words in seen, f"{words!r} is not on the page:\n{seen}"
        assert float(browser.run("$('f-tokens').textContent.replace(/[^0-9.]/g, '')")) > 0
        unnamed = (
            "[...document.querySelectorAll('button,input,select,textarea,svg[role=img]')].filter(e => e.offsetParent"
        )
        unnamed += " && !(e.ariaLabel || e.innerText || e.labels?.length)).map(e => e.outerHTML)"
        assert browser.run(unnamed) == []

        # Try it: an answer is streamed, a refusal is shown in words.
        browser.run("$('try-text').value = 'How do I scale a model to zero?'; $('try').requestSubmit()")
        browser.until(
            "$('try-answer').textContent == 'Set min_replicas to 0.' && $('try-state').innerText.startsWith('First')"
        )
        light = browser.screenshot(shots / "light.png", width=1200, height=900, dark=False)
        dark = browser.screenshot(shots / "dark.png", width=1200, height=900, dark=True)
        narrow = browser.screenshot(shots / "narrow.png", width=390, height=844, dark=False)
        assert size_of(light)[0] == 1200
        assert size_of(narrow)[0] == 390, "the narrow page must not scroll sideways"
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert light != dark
        browser.run("$('try-text').value = 'refuse me'; $('try').requestSubmit()")
        browser.until("$('try-answer').textContent == 'The queue is full.'")
        browser.call("Emulation.setEmulatedMedia", features=[])
        before = browser.run("getComputedStyle(document.documentElement).backgroundColor")
        browser.run("$('theme').click()")
        assert browser.run("getComputedStyle(document.documentElement).backgroundColor") != before
        assert browser.outside == []
        assert browser.complaints == []
    finally:
        browser.close()


async def test_the_page_shows_everything_and_asks_nobody_else(tmp_path: Path, shots: Path) -> None:
    async with page_server(FakeControl()) as url:
        await asyncio.to_thread(look_around, url, tmp_path / "profile", shots)


def look_at_nothing(url: str, profile: Path, shots: Path) -> None:
    browser = Browser(profile)
    try:
        browser.call("Page.navigate", url=f"{url}/#key={ADMIN}")
        browser.until("document.body.dataset.view == 'open'")
        seen = browser.run("document.querySelector('main').innerText")
        assert "No model yet." in seen
        assert "baseload models add" in seen
        assert "Nothing decided yet." in seen
        browser.screenshot(shots / "empty.png", width=1200, height=900, dark=False)
        assert browser.complaints == []
    finally:
        browser.close()


async def test_an_empty_system_teaches_the_next_step(tmp_path: Path, shots: Path) -> None:
    control = FakeControl()
    control.empty = True
    async with page_server(control) as url:
        await asyncio.to_thread(look_at_nothing, url, tmp_path / "profile", shots)
