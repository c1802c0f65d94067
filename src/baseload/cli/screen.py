"""What the commands print: tables for people, JSON for programs, errors with the next step."""

import errno
import io
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from baseload.domain.errors import BaseloadError, ControlError, DataError, SettingsError
from baseload.domain.units import NS_PER_S, NUSD_PER_USD, UJ_PER_J
from baseload.files import write_whole

OK, FAILURE, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
PIPE_COLUMNS = 200  # where no terminal says how wide it is


def out() -> Console:
    """Standard output."""
    return Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty())


def ready_streams() -> None:
    """Have the standard streams take whatever is written: closed ones nothing, narrow encodings a question mark."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123  # as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def unwritten(error: OSError) -> BaseloadError:
    """Words for what the system refused, most often to write our output; what waits to be written is given up."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    hint = "Make room on that disk." if error.errno == errno.ENOSPC else ""
    return BaseloadError(f"{error.filename or 'Writing'}: {error.strerror or error}.", hint=hint)


def print_json(value: object) -> None:
    """The value as indented JSON on standard output, and nothing else."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), footer: Sequence[str] = ()
) -> None:
    """A table; the columns in `right` are aligned to the right."""
    table = Table(box=SIMPLE_HEAD, show_footer=bool(footer), pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if column in right else "left",
            footer=escape(footer[index]) if footer else "",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out().print(table)


def say(text: str, *, style: str = "") -> None:
    """A line for people, on standard output."""
    out().print(escape(text), style=style or None, highlight=False)


def exit_code(error: BaseloadError) -> int:
    """0 done, 1 failed, 2 wrong usage, settings or input files, 3 no control process that answers or admits us."""
    match error:
        case SettingsError() | DataError():
            return USAGE
        case ControlError():
            return UNREACHABLE
        case _:
            return FAILURE


def complain(error: BaseloadError) -> None:
    """The error and what to do next, on standard error."""
    console = err()
    console.print(f"[bold red]Error:[/] {escape(error.message)}", highlight=False)
    if error.hint:
        console.print(f"[dim]Next:[/] {escape(error.hint)}", highlight=False)


def when(at_ns: int) -> str:
    """A wall time, UTC, to the second."""
    return datetime.fromtimestamp(at_ns / NS_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(duration_ns: int) -> str:
    """Seconds with as many digits as say something."""
    value = duration_ns / NS_PER_S
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def dollars(nusd: int) -> str:
    """Nano-dollars as dollars: cents for large sums, four significant digits for small ones."""
    value = nusd / NUSD_PER_USD
    return f"${value:,.2f}" if value == 0 or value >= 1 else f"${value:.4g}"


def joules(energy_uj: int) -> str:
    """Microjoules as joules."""
    value = energy_uj / UJ_PER_J
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def check_writable(*paths: Path | None) -> None:
    """SettingsError, before any long work, where a file that is to be written has no folder or is one."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
            raise SettingsError(f"{path}: cannot be written: {why}.", hint="Name another file.")


def write_file(path: Path, content: bytes) -> None:
    """`content` in `path`, whole or not at all; SettingsError where it cannot be written."""
    try:
        write_whole(path, [content])
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror}.", hint="Name another file.") from None
