"""The dashboard's routes without a server: files, safety headers, who is let in, and what a broken journal does."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest

from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.errors import JournalError
from baseload.domain.fleet import ReplicaState, WorkerSample
from baseload.domain.model import ModelSpec, Price
from baseload.domain.status import ControlStatus, ReplicaStatus
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_S
from baseload.web.feed import Feed
from baseload.web.pages import Dashboard


class FakeExchange:
    """Keeps what it was answered."""

    def __init__(self, path: str, *, method: str = "GET", **headers: str) -> None:
        self.method, self.path, self.headers = method, path, headers
        self.closed = self.started = False
        self.status, self.body, self.sent_headers = 0, b"", dict[str, str]()
        self.answered = asyncio.Event()
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()

    def respond(
        self, status: int, body: bytes, *, content_type: str = "", headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.status, self.body, self.sent_headers, self.closed = status, body, dict(headers), True
        self.answered.set()

    def start(self, status: int, *, content_type: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.status, self.started = status, True

    def write(self, chunk: bytes) -> None:
        self.chunks.put_nowait(chunk)

    def end(self) -> None:
        self.closed = True
        self.answered.set()

    async def drain(self) -> None:
        return None


class FakeControl:
    """One replica that writes ten tokens a second, and a journal that can be broken."""

    def __init__(self) -> None:
        self.seconds = 0
        self.broken = False
        self.secrets = ["bl-admin", "bl-guest"]

    def now_ns(self) -> int:
        return self.seconds * NS_PER_S

    def key_by_hash(self, digest: str) -> Key | None:
        for secret in self.secrets:
            if digest == hashlib.sha256(secret.encode()).hexdigest():
                return Key("key_1", secret, digest, 0, is_admin=secret == "bl-admin")
        return None

    def keys(self) -> list[Key]:
        return [Key("key_1", "bl-admin", "0" * 64, 0, is_admin=True)]

    def models(self) -> list[ModelSpec]:
        return [ModelSpec("guide", "/g", price=Price(usd_per_hour=0.5))]

    def status(self) -> ControlStatus:
        self.seconds += 1
        sample = WorkerSample(completion_tokens=10 * self.seconds)
        state = ReplicaState.READY
        replica = ReplicaStatus("r1", "guide", state, "", 1, 0, 0, 1, sample, 7, 0, 0, 30.0, "modelled")
        return ControlStatus(self.now_ns(), 0, 1, "p", (), (replica,), 0, 1, 1, 2 * self.seconds, 0, False)

    async def usage(self, *, from_day: str = "", to_day: str = "") -> list[UsageRow]:
        if self.broken:
            raise JournalError("The journal cannot be read.", hint="Repair the disk.")
        return []

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> list[JournalRow]:
        return []


def open_dashboard(control: FakeControl) -> tuple[Dashboard, Feed]:
    feed = Feed(control, version="1", step_s=0.001)  # type: ignore[arg-type]
    return Dashboard(control, feed), feed  # type: ignore[arg-type]


def ask(dashboard: Dashboard, path: str, **changes: Any) -> FakeExchange:
    exchange = FakeExchange(path, **changes)
    dashboard.handle(exchange)  # type: ignore[arg-type]
    return exchange


async def test_files_are_served_with_a_strict_policy_and_a_tag() -> None:
    dashboard, _ = open_dashboard(FakeControl())
    for path in ("/", "/dashboard/style.css", "/dashboard/page.js", "/favicon.ico"):
        assert dashboard.takes(path)
        first = ask(dashboard, path)
        assert (first.status, first.sent_headers["x-content-type-options"]) == (200, "nosniff")
        assert "default-src 'none'; script-src 'self'" in first.sent_headers["content-security-policy"]
        again = ask(dashboard, path, **{"if-none-match": first.sent_headers["etag"]})
        assert (again.status, again.body) == (304, b"")
    assert not dashboard.takes("/dashboard/other.js")
    page = ask(dashboard, "/").body.decode()
    assert "style=" not in page, "the policy forbids inline style"
    assert "<script>" not in page
    assert "//" not in page.replace("http://www.w3.org", ""), "nothing comes from outside"


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({}, 401, "No API key"),
        ({"authorization": "Basic bl-admin"}, 401, "No API key"),
        ({"authorization": "Bearer bl-wrong"}, 401, "does not exist or was revoked"),
        ({"authorization": "Bearer bl-guest"}, 403, "may not administer"),
    ],
)
async def test_who_is_not_let_in(headers: dict[str, str], status: int, words: str) -> None:
    dashboard, _ = open_dashboard(FakeControl())
    exchange = ask(dashboard, "/dashboard/feed", **headers)
    assert exchange.status == status
    assert words in json.loads(exchange.body)["error"]["message"]
    assert ask(dashboard, "/", method="POST").status == 405


async def test_the_feed_streams_figures_until_it_is_closed() -> None:
    dashboard, feed = open_dashboard(FakeControl())
    feed.open()
    exchange = ask(dashboard, "/dashboard/feed", authorization="Bearer bl-admin", accept="text/event-stream")
    seen = []
    while not seen or len(seen[-1]["history"]["tokens_per_s"]) < 3:
        seen.append(json.loads((await exchange.chunks.get()).removeprefix(b"data: ")))
    assert feed.watchers == 1
    assert seen[-1]["tokens_per_s"] == 10.0
    assert 0 < seen[-1]["requests_last_minute"] <= 120, "two a second, over a minute at most"
    assert (seen[-1]["power_w"], seen[-1]["usd_per_hour"]) == (30.0, 0.5)
    await dashboard.close()
    await feed.close()
    assert exchange.closed
    assert feed.watchers == 0


async def test_a_revoked_key_sees_no_more() -> None:
    control = FakeControl()
    feed = Feed(control, version="1", step_s=0.001)  # type: ignore[arg-type]
    dashboard = Dashboard(control, feed)  # type: ignore[arg-type]
    feed.open()
    exchange = ask(dashboard, "/dashboard/feed", authorization="Bearer bl-admin", accept="text/event-stream")
    async with asyncio.timeout(60):
        await exchange.chunks.get()
        control.secrets.remove("bl-admin")
        await exchange.answered.wait()
    assert feed.watchers == 0
    await dashboard.close()
    await feed.close()


async def test_a_broken_journal_is_said_and_does_not_stop_the_pulse(caplog: pytest.LogCaptureFixture) -> None:
    control = FakeControl()
    dashboard, feed = open_dashboard(control)
    feed.open()
    once = ask(dashboard, "/dashboard/feed", authorization="Bearer bl-admin")
    await once.answered.wait()
    assert once.status == 200
    streamed = ask(dashboard, "/dashboard/feed", authorization="Bearer bl-admin", accept="text/event-stream")
    await streamed.chunks.get()
    control.broken = True
    while "cannot read the journal" not in caplog.text:
        await streamed.chunks.get()
    await streamed.chunks.get()
    await dashboard.close()
    await feed.close()
    _, fresh = open_dashboard(control)
    refused = ask(Dashboard(control, fresh), "/dashboard/feed", authorization="Bearer bl-admin")  # type: ignore[arg-type]
    await refused.answered.wait()
    assert (refused.status, fresh.watchers) == (503, 0)
