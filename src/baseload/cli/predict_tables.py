"""What the four `baseload predict` commands share: arguments, reading their files, and writing what they say."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from baseload.cli.screen import say
from baseload.domain.errors import DataError
from baseload.limits.tables import separator_of

T = TypeVar("T")
Points = Annotated[
    Path, typer.Argument(help="A CSV, a row for each answer; columns: docs/limits.md, docs/limits-training.md.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The CSV to write: the columns given and ours.")]
Calibrate = Annotated[
    Path | None, typer.Option("--calibrate", help="Measured rows (the same columns) to calibrate by.")
]
OwnCatalogue = Annotated[
    Path | None, typer.Option("--catalogue", "--accelerators", help="Your own catalogue: a TOML file.")
]
Configs = Annotated[
    Path | None, typer.Option("--configs", help="A folder of ORG--MODEL_config.json or ORG/MODEL/config.json.")
]


def read_file(path: Path) -> bytes:
    """A file's bytes; DataError says in one line why there are none."""
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, not a file.", hint="Name a CSV file in it.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.", hint="Name a CSV file.") from None


def calibration(path: Path, read: Callable[..., Sequence[T]], measured: Callable[[T], bool]) -> list[T]:
    """The measured rows of a file to calibrate by; DataError where it has none, so that nobody thinks it helped."""
    rows = [row for row in read(read_file(path), name=str(path)) if measured(row)]
    if not rows:
        raise DataError(
            f"{path}: no row with a measured value to calibrate by.",
            hint="Name the measured columns as the pages of the limits model do, or leave --calibrate out.",
        )
    return rows


def say_if_in_vain(calibrate: Path | None, calibrated: int, alike: str) -> None:
    """That no answer rests on the measured rows, and what they would have to share with those asked."""
    if calibrate is not None and not calibrated:
        say(f"No answer rests on {calibrate}: none of its rows has the {alike} of a row that was asked.")


def check_output(path: Path) -> None:
    """DataError where nothing can be written, before the work is done."""
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file.", hint="Name the CSV to write with -o.")
    if not path.parent.is_dir():
        raise DataError(f"{path}: its folder does not exist.", hint=f"Create {path.parent}, or name another with -o.")


def write_answers(path: Path, asked: bytes, cells: Sequence[Mapping[str, Any]]) -> None:
    """The columns given, and ours after them, between commas; a column of ours that was given is ours."""
    text = asked.decode("utf-8-sig")
    lines = [line for line in csv.reader(io.StringIO(text), delimiter=separator_of(text)) if line]
    ours = list(cells[0]) if cells else ["basis", "expected_error", "note"]
    own = [(at, name) for at, name in enumerate(lines[0]) if name.strip().lower() not in ours]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*(name for _, name in own), *ours])
            for row, of in zip(lines[1:], cells, strict=True):
                given = [row[at] if at < len(row) else "" for at, _ in own]
                writer.writerow([*given, *(of[name] for name in ours)])
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}.", hint="Name another file with -o.") from None


def read_configs(folder: Path | None) -> dict[str, Any]:
    """Models' config.json in a folder, by name; none without a folder. DataError names one that is no JSON object."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder.", hint="Name a folder of config.json files.")
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*config.json")):
        if path.name == "config.json":
            name = path.parent.name
        elif path.name.endswith("_config.json") and not path.name.endswith("_quant_config.json"):
            name = path.name.removesuffix("_config.json").replace("--", "/")
        else:
            continue
        try:
            config = msgspec.json.decode(read_file(path), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DataError(
                f"{path}: not a JSON object: {error}.", hint="Give the model's own config.json."
            ) from None
        beside = path.with_name(path.name.replace("config.json", "hf_quant_config.json"))
        if "quantization_config" not in config and beside.is_file():
            config["quantization_config"] = _stated(beside)
        found.setdefault(name, config)
    return found


def _stated(path: Path) -> Any:
    """What a hf_quant_config.json says of the weights, which models of NVIDIA's keep beside their config.json."""
    try:
        return msgspec.json.decode(read_file(path), type=dict[str, Any]).get("quantization")
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: not a JSON object: {error}.", hint="Give the model's own file.") from None
