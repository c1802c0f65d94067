"""`baseload predict serving` and `baseload predict power`: what the limits model says of deployments under a load."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from baseload.cli.screen import say
from baseload.domain.errors import DataError

if TYPE_CHECKING:
    from baseload.limits.serving.predict import Prediction

ADDED = (
    "tpot_ms",
    "ttft_ms",
    "basis",
    "tpot_expected_error",
    "ttft_expected_error",
    "tpot_if_speculating_ms",
    "note",
)
predict = typer.Typer(help="Ask the limits model how fast a deployment would be.", no_args_is_help=True)


@predict.command("serving")
def serving(
    points: Annotated[Path, typer.Argument(help="A CSV of deployments and loads; columns: docs/limits.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV to write: the columns given and ours.")],
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="Measured points (the same columns) to calibrate by.")
    ] = None,
    accelerators: Annotated[
        Path | None, typer.Option("--accelerators", help="Your own accelerators: a TOML file.")
    ] = None,
    configs: Annotated[
        Path | None, typer.Option("--configs", help="A folder of ORG--MODEL_config.json or ORG/MODEL/config.json.")
    ] = None,
) -> None:
    """Time per output token and time to first token of each row."""
    # NumPy takes a moment to import; no other command should wait for it.
    from baseload.limits.catalogue.accelerators import read_catalogue  # noqa: PLC0415
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415
    from baseload.limits.serving import held_out  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415

    catalogue = read_catalogue(_read(accelerators), name=str(accelerators)) if accelerators else read_catalogue()
    predictor = Predictor(catalogue=catalogue, models=Models(_configs(configs)))
    asked = held_out.read_points(_read(points), name=str(points))
    if calibrate is not None:
        predictor = predictor.calibrate(held_out.read_points(_read(calibrate), name=str(calibrate)))
    answers = predictor.predict(asked)
    _write(output, _read(points).decode("utf-8-sig"), [_cells(answer) for answer in answers])
    calibrated = sum(answer.basis.startswith("calibrated") for answer in answers)
    flagged = sum(bool(answer.note) for answer in answers)
    say(f"{len(answers)} rows answered ({calibrated} calibrated, {flagged} with a note) in {output}.")


@predict.command("power")
def power(
    points: Annotated[Path, typer.Argument(help="A CSV of deployments and loads; columns: docs/limits.md, Power.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV to write: the columns given and ours.")],
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="Measured rows (the same columns) to calibrate by.")
    ] = None,
    accelerators: Annotated[
        Path | None, typer.Option("--accelerators", help="Your own accelerators: a TOML file.")
    ] = None,
    configs: Annotated[
        Path | None, typer.Option("--configs", help="A folder of ORG--MODEL_config.json or ORG/MODEL/config.json.")
    ] = None,
) -> None:
    """Watts while prompts are computed and while tokens are made, and joules per token, of each row."""
    from baseload.limits.catalogue.accelerators import read_catalogue  # noqa: PLC0415  # as above
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415
    from baseload.limits.serving.power_held_out import read_power  # noqa: PLC0415
    from baseload.limits.serving.power_points import PowerPredictor, added  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415

    catalogue = read_catalogue(_read(accelerators), name=str(accelerators)) if accelerators else read_catalogue()
    predictor = PowerPredictor(Predictor(catalogue=catalogue, models=Models(_configs(configs))))
    if b"accelerators_total" in _read(points).split(b"\n", 1)[0]:
        raise DataError(
            f"{points}: whole systems, not accelerators under a load.",
            hint="`baseload predict throughput` answers published results, with power at the wall.",
        )
    asked = read_power(_read(points), name=str(points))
    if calibrate is not None:
        predictor = predictor.calibrate(read_power(_read(calibrate), name=str(calibrate)))
    answers = predictor.predict(asked)
    _write(output, _read(points).decode("utf-8-sig"), [added(answer) for answer in answers])
    calibrated = sum(answer.basis.startswith("calibrated") for answer in answers)
    say(f"{len(answers)} rows answered ({calibrated} calibrated) in {output}.")


def _write(path: Path, text: str, cells: list[dict[str, Any]]) -> None:
    reader = csv.DictReader(io.StringIO(text))
    ours = list(cells[0]) if cells else list(ADDED)
    own = [name for name in reader.fieldnames or () if name not in ours]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*own, *ours], extrasaction="ignore")
            writer.writeheader()
            for row, of in zip(reader, cells, strict=True):
                writer.writerow({name: row[name] for name in own} | of)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}.", hint="Name another file with -o.") from None


def _cells(answer: "Prediction") -> dict[str, str]:
    return {
        "tpot_ms": f"{answer.tpot_ms:.4f}",
        "ttft_ms": f"{answer.ttft_ms:.3f}",
        "basis": answer.basis,
        "tpot_expected_error": f"{answer.tpot_expected_error:.3f}",
        "ttft_expected_error": f"{answer.ttft_expected_error:.3f}",
        "tpot_if_speculating_ms": f"{answer.tpot_if_speculating_ms:.4f}" if answer.tpot_if_speculating_ms else "",
        "note": answer.note,
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.", hint="Name a CSV file.") from None


def _configs(folder: Path | None) -> dict[str, Any]:
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
            config = msgspec.json.decode(_read(path), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DataError(
                f"{path}: not a JSON object: {error}.", hint="Give the model's own config.json."
            ) from None
        found.setdefault(name, config)
    return found
