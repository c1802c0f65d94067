"""`baseload predict` and `baseload validate`: what the limits model says, and how far that is from measurements."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from baseload.cli.flags import AsJson
from baseload.cli.screen import print_json, print_table, say
from baseload.domain.errors import DataError

if TYPE_CHECKING:
    from baseload.limits.serving.held_out import Figures
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
NOT_BUILT = (
    "per-request replay of real vLLM",
    "MLPerf LLM offline throughput",
    "MLPerf training",
    "power under load",
    "our own engine on this CPU",
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


def validate(
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="The folder that holds serving_measured/.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Which points calibrate.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Hold the limits model against measurements it was not fitted to. Takes a minute or two."""
    from baseload.limits.serving import held_out  # noqa: PLC0415  # as above
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415

    path = Path(data) / "serving_measured" / "serving_measured.csv"
    if not data or not path.is_file():
        say("Skipped: no measurements. Name their folder with --data (it has serving_measured/serving_measured.csv).")
        return
    points = held_out.read_points(path.read_bytes(), name=str(path))
    predictor = Predictor()
    parts = {
        "known groups": held_out.known_groups(points, predictor, seed=seed),
        "accelerator unseen": held_out.unseen_accelerator(points, predictor),
        "model unseen": held_out.unseen_model(points, predictor, seed=seed),
    }
    figures = {
        f"{name}, {long}": held_out.figures_of(scored.of(mode), predictor)
        for name, scored in parts.items()
        for mode, long in (("agg", "aggregated"), ("disagg", "disaggregated"))
    }
    if as_json:
        print_json({name: _finite(of) for name, of in figures.items()} | {"not built yet": NOT_BUILT})
        return
    _show(figures)


def _show(figures: dict[str, "Figures"]) -> None:
    columns = ("figure", "goal", "reached", "met", "points")
    rows = []
    for name, label, goal, field, sign in GOALS:
        of = figures[name]
        value = getattr(of, field)
        met = value >= goal if sign > 0 else value <= goal
        form = "{:.2f}" if field == "tau" else "{:.1%}"
        text = "–" if math.isnan(value) else form.format(value)
        bound = ("≥ " if sign > 0 else "≤ ") + form.format(goal)
        rows.append(
            (f"{name}: {label}", bound, text, "–" if math.isnan(value) else "yes" if met else "no", str(of.points))
        )
    rows += [(name, "", "not built yet", "", "") for name in NOT_BUILT]
    print_table(columns, rows, right=("goal", "reached", "points"))
    say("Scored: groups (accelerator, engine, model) the shipped values were not fitted to, one row per measurement.")
    say("Known groups: 20 points per accelerator, engine and mode calibrate; the rest is scored. See docs/limits.md.")


_AGG, _DIS = "known groups, aggregated", "known groups, disaggregated"
GOALS = (
    (_AGG, "TPOT mean, anomalies left out", 0.09, "tpot_clean", -1),
    (_AGG, "TPOT mean, all rows", 0.12, "tpot_mean", -1),
    (_AGG, "TPOT median", 0.06, "tpot_median", -1),
    (_AGG, "TTFT median", 0.16, "ttft_median", -1),
    (_AGG, "TTFT mean", 0.28, "ttft_mean", -1),
    (_DIS, "TPOT mean", 0.20, "tpot_mean", -1),
    (_DIS, "TPOT mean, worker counts known", 0.15, "known_tpot_mean", -1),
    (_DIS, "TTFT median", 0.40, "ttft_median", -1),
    ("accelerator unseen, aggregated", "TPOT mean", 0.17, "tpot_mean", -1),
    ("accelerator unseen, aggregated", "Kendall τ", 0.82, "tau", 1),
    ("accelerator unseen, aggregated", "chosen short of best", 0.10, "regret", -1),
    ("accelerator unseen, disaggregated", "TPOT mean", 0.22, "tpot_mean", -1),
    ("model unseen, aggregated", "TPOT mean", 0.17, "tpot_mean", -1),
    ("model unseen, aggregated", "TPOT median", 0.12, "tpot_median", -1),
    ("model unseen, aggregated", "Kendall τ", 0.80, "tau", 1),
)
"""Part of the examination, what is meant, the goal, the figure, and whether more (1) or less (-1) is better."""


def _finite(figures: "Figures") -> dict[str, Any]:
    fields = msgspec.to_builtins(figures).items()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields}


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
