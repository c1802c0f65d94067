"""`baseload up`: read the settings, then compose and run everything in the foreground."""

from typing import Annotated

import typer

from baseload.cli.flags import DataDir, SettingsFile
from baseload.cli.settings import cache_dir, load, take_secrets
from baseload.wire.settings_text import example_toml


def up(
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default 8080; 0 takes a free one.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Default 127.0.0.1: only this machine.")] = "",
    data_dir: DataDir = "",
    settings: SettingsFile = "",
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "",
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Any setting, as in the file.")
    ] = None,
    show_key: Annotated[
        bool, typer.Option("--show-key", help="Print the first key too. Mind who reads along.")
    ] = False,
    print_settings: Annotated[
        bool, typer.Option("--print-settings", help="Print a complete settings file with comments, and end.")
    ] = False,
) -> None:
    """Start everything: gateway, workers, dashboard. Prints `ready URL`; Ctrl-C stops it cleanly."""
    if print_settings:
        typer.echo(example_toml(), nl=False)
        return
    given = {"host": host, "data_dir": data_dir, "log_level": log_level, "port": "" if port is None else str(port)}
    chosen = load(
        settings_file=settings,
        flags={path: text for path, text in given.items() if text},
        assignments=assign or [],
    )
    # Gateway, live world and web: only this command needs them all.
    from baseload.cli.serving import serve_forever  # noqa: PLC0415

    raise typer.Exit(serve_forever(chosen, cache_dir=cache_dir(chosen), secrets=take_secrets(), show_key=show_key))
