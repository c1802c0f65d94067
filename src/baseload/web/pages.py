"""The dashboard's routes: three static files and one feed, which needs an admin key. Nothing from outside."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources

from baseload.core.ports import Control
from baseload.domain.errors import JournalError, Reason, Refusal
from baseload.domain.tenant import Key
from baseload.net.server import Exchange
from baseload.web.feed import MAX_WATCHERS, Feed
from baseload.wire.bearer import authenticate_admin
from baseload.wire.openai_errors import error_body, internal_error_body

FEED_PATH = "/dashboard/feed"
STATIC: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard/style.css": ("style.css", "text/css; charset=utf-8"),
    "/dashboard/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}
NO_STORE = ("cache-control", "no-store")
SAFETY: Sequence[tuple[str, str]] = (
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)


class Dashboard:
    """Answers the page's requests. `takes` says whether a path is one of ours."""

    def __init__(self, control: Control, feed: Feed) -> None:
        self._control = control
        self._feed = feed
        self._files = {
            path: (resources.files("baseload.web").joinpath("static", name).read_bytes(), kind)
            for path, (name, kind) in STATIC.items()
        }
        self._tasks: dict[asyncio.Task[None], None] = {}  # bounded by MAX_WATCHERS

    def takes(self, path: str) -> bool:
        """Whether this path belongs to the dashboard."""
        return path in self._files or path == FEED_PATH

    def handle(self, exchange: Exchange) -> None:
        """Answer one request; called by the server once it is complete."""
        if exchange.method not in ("GET", "HEAD"):
            _refuse(exchange, 405, Reason.UNKNOWN_ROUTE, "The dashboard is only read. Use GET.")
        elif exchange.path in self._files:
            self._static(exchange)
        elif (key := self._admitted(exchange)) is not None:
            task = asyncio.get_running_loop().create_task(self._feed_to(exchange, key))
            self._tasks[task] = None
            task.add_done_callback(self._tasks.pop)

    async def close(self) -> None:
        """End every open feed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _static(self, exchange: Exchange) -> None:
        body, kind = self._files[exchange.path]
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        headers = [*SAFETY, ("etag", tag), ("cache-control", "no-cache")]
        if exchange.headers.get("if-none-match") == tag:
            exchange.respond(304, b"", content_type=kind, headers=headers)
        else:
            exchange.respond(200, body, content_type=kind, headers=headers)

    def _admitted(self, exchange: Exchange) -> Key | None:
        try:
            key = authenticate_admin(self._control, exchange.headers)
        except Refusal as refusal:
            status, headers, body = error_body(refusal)
            exchange.respond(status, body, headers=[*headers, NO_STORE])
            return None
        if self._feed.watchers >= MAX_WATCHERS:
            _refuse(exchange, 503, Reason.TOO_MANY_IN_FLIGHT, f"{MAX_WATCHERS} dashboards are open. Close one.")
            return None
        return key

    async def _feed_to(self, exchange: Exchange, key: Key) -> None:
        self._feed.watchers += 1
        try:
            if "text/event-stream" not in exchange.headers.get("accept", ""):
                exchange.respond(200, await self._feed.encoded(), headers=[NO_STORE])
                return
            exchange.start(200, content_type="text/event-stream", headers=[NO_STORE])
            while not exchange.closed and self._control.key_by_hash(key.secret_sha256) is not None:
                exchange.write(b"data: " + await self._feed.encoded() + b"\n\n")
                await exchange.drain()
                await self._feed.next_tick()
        except JournalError as error:
            if not exchange.started:
                _refuse(exchange, 503, Reason.JOURNAL_UNAVAILABLE, str(error))
        finally:
            self._feed.watchers -= 1
            if not exchange.closed:
                if exchange.started:
                    exchange.end()
                else:
                    exchange.respond(500, internal_error_body())


def _refuse(exchange: Exchange, status: int, reason: Reason, message: str) -> None:
    _, headers, body = error_body(Refusal(reason, message))
    exchange.respond(status, body, headers=[*headers, NO_STORE])
