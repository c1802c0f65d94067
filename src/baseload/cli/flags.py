"""The options that several commands share."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated

import typer

from baseload.cli.reach import Place

DataDir = Annotated[
    str, typer.Option("--data-dir", metavar="DIR", help="Where the journal and keys live. Default: baseload-data.")
]
SettingsFile = Annotated[
    str, typer.Option("--settings", metavar="FILE", help="Settings file. Default: baseload.toml.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Url = Annotated[str, typer.Option("--url", metavar="URL", help="A running Baseload, here or elsewhere.")]
Secret = Annotated[
    str, typer.Option("--key", metavar="KEY", help="Its key. Better in BASELOAD_KEY, where no one sees it.")
]
_WHERE = {"data_dir": DataDir, "settings": SettingsFile, "url": Url, "key": Secret}


def at_place(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options that say where Baseload is, which it gets as one `place: Place`."""
    where = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=kind)
        for name, kind in _WHERE.items()
    ]
    options: list[inspect.Parameter] = []
    for one in inspect.signature(command).parameters.values():
        options += where if one.name == "place" else [one.replace(kind=inspect.Parameter.KEYWORD_ONLY)]

    @wraps(command)
    def run(**given: object) -> None:
        place = Place(**{name: str(given.pop(name)) for name in _WHERE})
        command(place=place, **given)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what the parser reads
    run.__annotations__ = {one.name: one.annotation for one in options}
    return run
