"""`baseload validate`: how far the limits model is from measurements it was not fitted to."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from baseload.cli.flags import AsJson
from baseload.cli.screen import err, print_json, print_table, say
from baseload.domain.errors import SettingsError
from baseload.limits.goals import Row

KNOWN = "half of the groups (accelerator, engine, model) held out; 20 points of each accelerator and engine calibrate"
UNSEEN = {
    "accelerator unseen": "fitted on all other accelerators, scored on this one's held-out groups",
    "model unseen": "fitted on all other models, scored on this one's held-out groups",
}
OWN_ENGINE = "Our own engine on this CPU: python bench/limits/own_engine.py, on a quiet machine."


def validate(
    data: Annotated[
        str, typer.Option("--data", metavar="DIR", help="The folder that holds serving_measured/ and the others.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed", help="Which points calibrate.")] = 1,
    only: Annotated[
        str, typer.Option("--only", help="Of serving, replay, power, throughput, training; commas between.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Hold the limits model against measurements it was not fitted to. Takes some minutes."""
    folder, wanted = Path(data), [name.strip() for name in only.split(",")] if only else list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        raise SettingsError(f"--only {only}: there is no part {unknown[0]!r}.", hint=f"Parts: {', '.join(PARTS)}.")
    if data and not folder.is_dir():
        raise SettingsError(f"--data {data}: there is no such folder.", hint="Name the folder of the measurements.")
    parts = {name: part for name, part in PARTS.items() if (folder / part[0]).exists() and name in wanted}
    if not data or not parts:
        if as_json:
            print_json([])
        else:
            say("Skipped: no measurements. Name their folder with --data; serving_measured/ is in it.")
        return
    rows: list[Row] = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err(),
        disable=as_json,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=len(parts))
        for name, (place, part) in parts.items():
            bar.update(task, description=name)
            rows += part(folder / place, seed)
            bar.advance(task)
    if as_json:
        print_json([_finite(row) for row in rows])
        return
    columns = ("figure", "goal", "reached", "met", "points")
    table = [(row.what, _bound(row), row.shown(row.reached), _met(row), str(row.points)) for row in rows]
    print_table(columns, table, right=("goal", "reached", "points"))
    for split in dict.fromkeys(row.split for row in rows):
        say(f"  {split}: {', '.join(_short(rows, split))}", style="dim")
    say(OWN_ENGINE, style="dim")
    missing = [place for name, (place, _) in PARTS.items() if name not in parts and not only]
    if missing:
        say(f"Skipped, not in the folder: {', '.join(missing)}.", style="dim")


def _serving(path: Path, seed: int) -> list[Row]:
    from baseload.limits.serving import held_out  # noqa: PLC0415  # NumPy takes a moment to import
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415

    points = held_out.read_points(path.read_bytes(), name=str(path))
    predictor = Predictor()
    scored = {
        "known groups": held_out.known_groups(points, predictor, seed=seed),
        "accelerator unseen": held_out.unseen_accelerator(points, predictor),
        "model unseen": held_out.unseen_model(points, predictor, seed=seed),
    }
    rows = []
    for part, mode, label, goal, field, sign in GOALS:
        of = held_out.figures_of(scored[part].of(mode), predictor)
        long = "aggregated" if mode == "agg" else "disaggregated"
        rows.append(
            Row(
                what=f"{part}, {long}: {label}",
                reached=getattr(of, field),
                points=of.known_points if field.startswith("known") else of.points,
                split=UNSEEN.get(part, KNOWN),
                goal=goal,
                higher_is_better=sign > 0,
                unit="" if field == "tau" else "%",
            )
        )
    return rows


def _replay(folder: Path, seed: int) -> list[Row]:
    from baseload.domain.errors import DataError  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415  # as above
    from baseload.twin.recorded import parse_engine, parse_requests  # noqa: PLC0415
    from baseload.twin.replay_fit import Run  # noqa: PLC0415
    from baseload.twin.replay_held_out import RecordedRun, score  # noqa: PLC0415

    predictor, runs = Predictor(), []
    for path in sorted(folder.glob("*/*/*/requests.jsonl")):
        accelerator, name = path.parents[2].name, path.parents[1].name
        try:
            memory_gb = predictor.catalogue.find(accelerator).need("memory_gb")
        except DataError:  # a run on what the catalogue does not have is passed over
            continue
        settings = parse_engine((path.parent / "meta.json").read_bytes(), name=str(path), memory_gb=memory_gb)
        shape = predictor.models.find(settings.model or name)[0]
        run = Run(parse_requests(path.read_bytes(), name=str(path)), settings, shape)
        runs.append(RecordedRun(run, accelerator, f"{accelerator} {name}"))
    return score(runs, predictor)


def _power(path: Path, seed: int) -> list[Row]:
    from baseload.limits.serving.power_held_out import score  # noqa: PLC0415  # as above

    return score(path.read_bytes(), name=str(path))


def _throughput(path: Path, seed: int) -> list[Row]:
    from baseload.limits.throughput.held_out import score  # noqa: PLC0415  # as above

    return score(path.read_bytes(), name=str(path), seed=seed)


def _training(path: Path, seed: int) -> list[Row]:
    from baseload.limits.training.held_out import score  # noqa: PLC0415  # as above

    return score(path.read_bytes(), name=str(path))


PARTS: dict[str, tuple[str, Callable[[Path, int], list[Row]]]] = {
    "serving": ("serving_measured/serving_measured.csv", _serving),
    "replay": ("vllm_replay", _replay),
    "power": ("splitwise_perf/perf_model.csv", _power),
    "throughput": ("mlperf_inference/llm.csv", _throughput),
    "training": ("mlperf_training/v5.1_up_to_72.csv", _training),
}
"""A part's place in the folder, and what scores it."""

_KNOWN, _CHIP, _MODEL = "known groups", "accelerator unseen", "model unseen"
GOALS = (
    (_KNOWN, "agg", "TPOT mean, anomalies left out", 0.09, "tpot_clean", -1),
    (_KNOWN, "agg", "TPOT mean, all rows", 0.12, "tpot_mean", -1),
    (_KNOWN, "agg", "TPOT median", 0.06, "tpot_median", -1),
    (_KNOWN, "agg", "TTFT median", 0.16, "ttft_median", -1),
    (_KNOWN, "agg", "TTFT mean", 0.28, "ttft_mean", -1),
    (_KNOWN, "disagg", "TPOT mean", 0.20, "tpot_mean", -1),
    (_KNOWN, "disagg", "TPOT mean, worker counts known", 0.15, "known_tpot_mean", -1),
    (_KNOWN, "disagg", "TTFT median", 0.40, "ttft_median", -1),
    (_CHIP, "agg", "TPOT mean", 0.17, "tpot_mean", -1),
    (_CHIP, "agg", "TPOT mean, anomalies left out", None, "tpot_clean", -1),
    (_CHIP, "agg", "TPOT median", None, "tpot_median", -1),
    (_CHIP, "agg", "Kendall τ", 0.82, "tau", 1),
    (_CHIP, "agg", "chosen short of best", 0.10, "regret", -1),
    (_CHIP, "disagg", "TPOT mean", 0.22, "tpot_mean", -1),
    (_MODEL, "agg", "TPOT mean", 0.17, "tpot_mean", -1),
    (_MODEL, "agg", "TPOT mean, anomalies left out", None, "tpot_clean", -1),
    (_MODEL, "agg", "TPOT median", 0.12, "tpot_median", -1),
    (_MODEL, "agg", "Kendall τ", 0.80, "tau", 1),
)
"""Part of the examination, mode, what is meant, the goal, the figure, and whether more (1) or less (-1) is better."""


def _bound(row: Row) -> str:
    return "" if row.goal is None else f"{'≥' if row.higher_is_better else '≤'} {row.shown(row.goal)}"


def _met(row: Row) -> str:
    return {True: "yes", False: "no", None: ""}[row.met]


def _short(rows: Sequence[Row], split: str) -> list[str]:
    """What a split was used for, in few words."""
    found = list(dict.fromkeys(row.what.split(":")[0].split(", ")[0] for row in rows if row.split == split))
    return found if len(found) <= 3 else [*found[:3], "…"]


def _finite(row: Row) -> dict[str, object]:
    fields = msgspec.to_builtins(row).items()
    found = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields}
    return found | {"met": row.met}
