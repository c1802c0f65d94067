"""The composition of the live system: control, workers, gateway and dashboard in one process, until a signal.

The order matters. The port is taken first, so that a wrong one fails at once; keys and models are durable before the
first request; `ready` is printed when a request would be answered; on the way out the gateway outlives the drain.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from rich.markup import escape

from baseload.cli.first_start import ensure_admin_key, ensure_models
from baseload.cli.reach import KEY_FILE
from baseload.cli.remotes import FOLDER, Secrets, check_remote
from baseload.cli.screen import FAILURE, OK, out
from baseload.domain.errors import BaseloadError
from baseload.domain.events import ShutdownAsked
from baseload.domain.model import ModelSpec
from baseload.domain.units import NS_PER_S
from baseload.gateway.gateway import Gateway
from baseload.live.driver import LiveControl
from baseload.live.launcher import LauncherOptions
from baseload.live.run import ControlOptions, calm_collector, start_control
from baseload.live.writer import JournalOptions
from baseload.net.client import Client
from baseload.net.server import HttpServer, serve
from baseload.web.feed import Feed
from baseload.web.pages import Dashboard
from baseload.wire.settings import Settings

_log = logging.getLogger("baseload")
BACKLOG = 1024
LAST_ANSWERS_S = 5.0  # for the last bytes of answers, where nobody was cut off
LAST_MOMENT_S = 0.5  # from the end of the drain until workers that are still there are killed
LOOK_EVERY_S = 1.0  # whether an administrator asked for the end


def serve_forever(settings: Settings, *, cache_dir: Path, secrets: Mapping[str, str], show_key: bool = False) -> int:
    """Run until a signal; gives the exit code. `secrets`: those of the environment, by name in capitals."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        data_dir = Path(settings.data_dir).expanduser().absolute()
        found = Secrets(data_dir / FOLDER, secrets)
        return runner.run(_serve(settings, data_dir, cache_dir, found, show_key=show_key))


async def _serve(settings: Settings, data_dir: Path, cache_dir: Path, secrets: Secrets, *, show_key: bool) -> int:
    signals = _Signals()
    with contextlib.closing(_take_port(settings.host, settings.port)) as sock:
        control = await start_control(data_dir, options=_options(settings, cache_dir))
        try:
            await ensure_models(control, settings, prepare=partial(check_remote, secrets=secrets))
            await ensure_admin_key(control, data_dir / KEY_FILE)
            async with _Front(control, settings, sock, secrets) as front:
                url = _url(settings.host, front.server.port)
                control.announce(url)
                calm_collector()
                _say_ready(url, data_dir / KEY_FILE, control.models(), show_key=show_key)
                await _until_asked_to_stop(control, signals)
                front.leave_pages()
                await _stop(control, front, settings.drain_ns, signals)
        finally:
            await control.stop(0.0)
    failure = control.ended.exception() if control.ended.done() else None
    if failure is not None:
        _log.error("The control machine failed: %s. Start again: nothing acknowledged is lost.", failure)
        return FAILURE
    return OK


LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Where only this machine hears us, /metrics needs no key."""


class _Front:
    """Everything that speaks HTTP: server, gateway, dashboard."""

    def __init__(self, control: LiveControl, settings: Settings, sock: socket.socket, secrets: Secrets) -> None:
        self._settings = settings
        self._sock = sock
        self._client = Client()
        self._feed = Feed(control, version=version("baseload"))
        self._pages = Dashboard(control, self._feed)
        self._gateway = Gateway(
            control,
            self._client,
            extra_routes=[self._pages],
            prepare_model=partial(check_remote, secrets=secrets),
            secret_line=secrets.line,
            open_metrics=settings.host in LOOPBACK,
        )
        self._leaving: asyncio.Task[None] | None = None
        self.server: HttpServer

    async def __aenter__(self) -> "_Front":
        self._feed.open()
        self.server = await serve(
            self._gateway.handle,
            host=self._settings.host,
            port=0,
            max_body_bytes=self._settings.gateway.max_body_bytes,
            sock=self._sock,
        )
        return self

    def leave_pages(self) -> None:
        """End the open dashboards: they would hold the server open for ever."""
        self._leaving = asyncio.get_running_loop().create_task(self._pages.close())

    async def cut_off(self) -> None:
        """End what still runs; its clients are told why."""
        self._gateway.is_leaving = True
        await self.server.close(0.0)

    async def __aexit__(self, *_: object) -> None:
        self._gateway.is_leaving = True
        if self._leaving is not None:
            await self._leaving
        await self._pages.close()
        await self._feed.close()
        await self._gateway.close()
        await self.server.close(LAST_ANSWERS_S)
        await self._client.close()


class _Signals:
    """SIGINT and SIGTERM: the first asks for an orderly end, the second for a quick one."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _until_asked_to_stop(control: LiveControl, signals: _Signals) -> None:
    asked = asyncio.get_running_loop().create_task(signals.first.wait())
    ends: tuple[asyncio.Future[Any], ...] = (asked, control.ended)
    try:
        while not asked.done() and not control.ended.done() and not control.status().shutting_down:
            await asyncio.wait(ends, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()


async def _stop(control: LiveControl, front: _Front, drain_ns: int, signals: _Signals) -> None:
    """Let running requests finish; at the end of the grace, or at the second signal, cut those that are left.

    Each is told and journaled as cut off; workers have a moment to end by themselves: drain_s and a second is all.
    """
    running, drain_s = control.status().in_flight, drain_ns / NS_PER_S
    if running:
        _log.warning(
            "Stopping: %d running requests may finish within %.0f s. Ctrl-C again ends them.", running, drain_s
        )
    stopping = asyncio.ensure_future(control.stop(drain_s))
    hurried = asyncio.ensure_future(signals.second.wait())
    either: tuple[asyncio.Future[Any], ...] = (stopping, hurried)
    await asyncio.wait(either, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not stopping.done():
        control.tell(ShutdownAsked(0))
        cutting = asyncio.ensure_future(front.cut_off())
        await asyncio.wait([stopping], timeout=LAST_MOMENT_S)
        if not stopping.done():
            control.kill_workers()
        await cutting
    if not await stopping:
        _log.warning("Some workers did not end in time and were killed.")


def _options(settings: Settings, cache_dir: Path) -> ControlOptions:
    fingerprint = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()
    cache_dir.mkdir(parents=True, exist_ok=True)
    journal = settings.journal
    return ControlOptions(
        launcher=LauncherOptions(cache_dir=cache_dir, spares=settings.spares),
        journal=JournalOptions(max_events=journal.max_events, max_age_days=journal.max_age_days),
        settings_sha256=fingerprint,
    )


def _take_port(host: str, port: int) -> socket.socket:
    """A bound socket. It is taken before anything else is started, so that nothing must be undone."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen(BACKLOG)  # two can bind with SO_REUSEADDR; only one can listen
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise BaseloadError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Choose another with --port (0 takes a free one) or --host, or stop what uses it.",
        ) from error
    return sock


def _url(host: str, port: int) -> str:
    """An address that works on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - named, not bound
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _say_ready(url: str, key_file: Path, models: Sequence[ModelSpec], *, show_key: bool) -> None:
    console = out()
    console.print(f"ready {url}", highlight=False, markup=False)
    secret = key_file.read_text(encoding="ascii").strip() if show_key and key_file.is_file() else ""
    if secret:
        console.print(f"key   {secret}", highlight=False, markup=False)
    if not console.is_terminal:
        return
    shown = escape(os.path.relpath(key_file))
    page = f"{url}/#key={secret}" if secret else f"{url}  (it asks for the key in {shown})"
    name = escape(models[0].name if models else "NAME")
    body = (
        f'{{"model": "{name}", "temperature": 0, "messages": \\[{{"role": "user", "content": "What is Baseload?"}}]}}'
    )
    # No frame around it: the lines are there to be copied.
    console.print(
        f"\n[bold]Dashboard[/]  {page}\n[bold]Chat[/]       baseload chat\n[bold]API[/]        "
        f"curl {url}/v1/chat/completions \\\n"
        f'             -H "Authorization: Bearer $(cat {shown})" -H "Content-Type: application/json" \\\n'
        f"             -d '{body}'\n\n"
        "[dim]Ctrl-C stops it cleanly.[/]",
        highlight=False,
        soft_wrap=True,
    )


def _raise_file_limit() -> None:
    """As many open files as the system grants us: each client and each worker connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
