"""How a command finds a running Baseload and its key, or opens the data folder when none runs."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from baseload.cli.desk import Desk, LocalDesk
from baseload.cli.http import HttpDesk
from baseload.cli.settings import load, surroundings
from baseload.domain.errors import ControlError, SettingsError
from baseload.live.datadir import find_running
from baseload.wire.settings import Settings

KEY_FILE = "first-key"
T = TypeVar("T")


class Place(Struct, frozen=True):
    """What the flags of a command say about where Baseload is."""

    data_dir: str = ""
    settings: str = ""
    url: str = ""
    key: str = ""


def settings_of(place: Place) -> Settings:
    """The settings under the place's flags."""
    return load(settings_file=place.settings, flags={"data_dir": place.data_dir} if place.data_dir else {})


def address(place: Place) -> tuple[str, str]:
    """URL and key of a running Baseload; ("", "") when the data folder has none that runs."""
    around = surroundings()
    url = place.url or around.url
    data_dir = Path(settings_of(place).data_dir)
    if not url:
        running = find_running(data_dir)
        if running is None:
            return "", ""
        url = running.url
    return url.rstrip("/"), place.key or around.key or _key_of(data_dir)


def _key_of(data_dir: Path) -> str:
    try:
        return (data_dir / KEY_FILE).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise SettingsError(
            f"No key was given, and {data_dir / KEY_FILE} is not there.",
            hint="Give an admin key with BASELOAD_KEY=… or --key.",
        ) from None
    except PermissionError:
        raise SettingsError(
            f"{data_dir / KEY_FILE} belongs to another user.", hint="Give an admin key with BASELOAD_KEY=… or --key."
        ) from None


def with_desk(place: Place, work: Callable[[Desk], Awaitable[T]]) -> T:
    """Run `work` on the desk of the place: the running control's, or the data folder's own."""
    url, key = address(place)
    if url:
        return asyncio.run(_await(work(HttpDesk(url, key))))
    data_dir = Path(settings_of(place).data_dir)
    if not data_dir.is_dir():
        raise ControlError(
            f"Baseload is not running, and there is no data folder {data_dir}.",
            hint="Start it with `baseload up`, or say where it is with --data-dir or --url.",
        )
    return asyncio.run(_offline(data_dir, work))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _offline(data_dir: Path, work: Callable[[Desk], Awaitable[T]]) -> T:
    # The whole live world: only needed when no control runs, and too slow to import for every command.
    from baseload.live.run import open_offline  # noqa: PLC0415

    async with open_offline(data_dir) as control:
        return await work(LocalDesk(control))
