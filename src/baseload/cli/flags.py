"""The options that several commands share."""

from typing import Annotated

import typer

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
