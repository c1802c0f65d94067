"""`baseload predict training` and `baseload predict throughput`: published tables answered by the limits model."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from baseload.cli.catalogue import own_book
from baseload.cli.predict import _configs
from baseload.cli.screen import say
from baseload.domain.errors import DataError

Points = Annotated[Path, typer.Argument(help="A CSV of published results; columns: docs/limits-training.md.")]
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


def training(
    points: Points,
    output: Output,
    calibrate: Calibrate = None,
    catalogue: OwnCatalogue = None,
    configs: Configs = None,
) -> None:
    """Step time of each training job: seconds, with what the answer rests on and its expected error."""
    # NumPy takes a moment to import; no other command should wait for it.
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415
    from baseload.limits.training.points import read_rows  # noqa: PLC0415
    from baseload.limits.training.predict import Predictor, added  # noqa: PLC0415

    predictor = Predictor(catalogue=own_book(catalogue).accelerators, models=Models(_configs(configs)))
    asked = read_rows(_read(points), name=str(points))
    if calibrate is not None:
        predictor = predictor.calibrate(read_rows(_read(calibrate), name=str(calibrate)))
    answers = predictor.predict(asked)
    _write(output, points, [added(row, answer) for row, answer in zip(asked, answers, strict=True)])
    _report(output, [answer.step_s is not None for answer in answers], [answer.basis for answer in answers])


def throughput(
    points: Points,
    output: Output,
    calibrate: Calibrate = None,
    catalogue: OwnCatalogue = None,
    configs: Configs = None,
) -> None:
    """Throughput of each inference result in its own unit, and power at the wall."""
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415  # as above
    from baseload.limits.throughput.points import read_rows  # noqa: PLC0415
    from baseload.limits.throughput.predict import Predictor, added  # noqa: PLC0415

    predictor = Predictor(catalogue=own_book(catalogue).accelerators, models=Models(_configs(configs)))
    asked = read_rows(_read(points), name=str(points))
    if calibrate is not None:
        predictor = predictor.calibrate(read_rows(_read(calibrate), name=str(calibrate)))
    answers = predictor.predict(asked)
    _write(output, points, [added(answer) for answer in answers])
    _report(output, [answer.throughput is not None for answer in answers], [answer.basis for answer in answers])


def _report(output: Path, answered: Sequence[bool], bases: Sequence[str]) -> None:
    calibrated = sum(basis.startswith("calibrated") for basis in bases)
    flagged = len(answered) - sum(answered)
    rest = f", {flagged} flagged with the missing figure" if flagged else ""
    say(f"{sum(answered)} of {len(answered)} rows answered ({calibrated} calibrated{rest}) in {output}.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.", hint="Name a CSV file.") from None


def _write(path: Path, points: Path, cells: Sequence[Mapping[str, Any]]) -> None:
    """The columns given, and ours after them; a column of ours that was given is ours."""
    reader = csv.DictReader(io.StringIO(_read(points).decode("utf-8-sig")))
    ours = list(cells[0]) if cells else ["basis", "expected_error", "note"]
    own = [name for name in reader.fieldnames or () if name not in ours]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*own, *ours], extrasaction="ignore")
            writer.writeheader()
            for row, of in zip(reader, cells, strict=True):
                writer.writerow({name: row[name] for name in own} | dict(of))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}.", hint="Name another file with -o.") from None
