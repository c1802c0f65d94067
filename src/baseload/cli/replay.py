"""`baseload simulate`: a fleet on a virtual clock (the default), or recorded requests on a modelled engine."""

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from baseload.cli import simulate as runs
from baseload.cli.flags import AsJson
from baseload.cli.screen import print_json, print_table, say
from baseload.domain.errors import DataError, ModelError

if TYPE_CHECKING:
    from baseload.limits.catalogue.models import Models
    from baseload.limits.shapes import ModelShape
    from baseload.twin.recorded import Recorded
    from baseload.twin.replay import Agreement, Replayed

COLUMNS = ("request_id", "input_tokens", "output_tokens", "arrival_s", "ttft_ms", "tpot_ms", "e2e_ms", "basis")
_RUN = "run"


class _RunUnlessNamed(TyperGroup):
    """A group whose first command is meant where none is named: `simulate SPEC.toml` is `simulate run SPEC.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


simulate = typer.Typer(
    cls=_RunUnlessNamed,
    help="See what a fleet would do, on a virtual clock: `simulate [SPEC.toml]`, which is `simulate run`. Or replay "
    "recorded requests on a modelled engine: `simulate replay`. Or set two runs side by side: `simulate diff`. "
    "Each prints JSON with --json.",
)
simulate.command(_RUN)(runs.simulate)
simulate.command("diff")(runs.diff)


@simulate.command("replay")
def replay(
    requests: Annotated[Path, typer.Argument(help="Recorded requests, JSON lines: arrivals and token counts.")],
    model: Annotated[Path, typer.Option("--model", help="The model's Hugging Face config.json.")],
    engine: Annotated[Path, typer.Option("--engine", help="The engine's settings as JSON, with vLLM's names.")],
    accelerator: Annotated[str, typer.Option("--accelerator", help="A name of the catalogue, or of your own.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV to write: times of each request.")],
    calibrate: Annotated[
        list[Path] | None,
        typer.Option("--calibrate", help="Requests with measured times (their meta.json beside) to calibrate by."),
    ] = None,
    calibrate_first: Annotated[
        int, typer.Option("--calibrate-first", min=0, help="Calibrate by the first so many of REQUESTS themselves.")
    ] = 0,
    accelerators: Annotated[
        Path | None, typer.Option("--accelerators", help="Your own accelerators: a TOML file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded requests through our batcher with an engine's settings; times of each by the limits model."""
    # NumPy takes a moment to import; no other command should wait for it.
    from baseload.limits.catalogue.accelerators import read_catalogue  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415
    from baseload.twin.recorded import parse_engine, parse_requests  # noqa: PLC0415
    from baseload.twin.replay import Replay, agreement  # noqa: PLC0415
    from baseload.twin.replay_fit import Run, calibrated, cost_of, shipped, word  # noqa: PLC0415

    catalogue = read_catalogue(_read(accelerators), name=str(accelerators)) if accelerators else read_catalogue()
    predictor = Predictor(catalogue=catalogue)
    memory_gb = catalogue.find(accelerator).need("memory_gb")

    def run_of(path: Path, settings: Path, config: Path | None) -> Run:
        recorded = parse_requests(_read(path), name=str(path))
        of = parse_engine(_read(settings), name=str(settings), memory_gb=memory_gb)
        return Run(recorded, of, _shape(config, of.model, predictor.models))

    run = run_of(requests, engine, model)
    by = [run_of(path, path.parent / "meta.json", None) for path in calibrate or []]
    if calibrate_first:
        first = [_known(request, i < calibrate_first) for i, request in enumerate(run.requests)]
        by.append(Run(first, run.settings, run.shape))
    known = calibrated(by, accelerator, predictor, shipped())
    started = time.perf_counter()
    cost = cost_of(run, accelerator, predictor, known)
    replayed = Replay(run.requests, run.settings, cost).run()
    took_s = time.perf_counter() - started
    measured = sum(request.measured for other in by for request in other.requests)
    named = word(accelerator, run.settings.engine, predictor)
    basis = f"shipped values for {named}" if named in known else f"usual values; no recorded run of {named}"
    basis = f"calibrated: {measured} measured requests" if measured else basis
    _write(output, run.requests, replayed, basis)
    scored = [_known(request, i >= calibrate_first) for i, request in enumerate(run.requests)]
    compared = agreement(scored, replayed)
    if as_json:
        found = None if compared is None else msgspec.to_builtins(compared)
        print_json({"requests": len(replayed), "basis": basis, "seconds": took_s, "against_measured": found})
        return
    say(f"{len(replayed)} requests replayed in {took_s:.2f} s ({basis}); {output}.")
    _notes(sum(outcome.refused for outcome in replayed), cost.note)
    if compared is not None:
        _show(compared)


def _known(request: "Recorded", known: bool) -> "Recorded":
    return request if known else msgspec.structs.replace(request, ttft_ms=0.0, tpot_ms=0.0, e2e_ms=0.0)


def _shape(config: Path | None, name: str, models: "Models") -> "ModelShape":
    from baseload.limits.shape_config import shape_of  # noqa: PLC0415  # as above

    if config is None:
        return models.find(name)[0]
    try:
        of = msgspec.json.decode(_read(config), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DataError(f"{config}: not a JSON object: {error}.", hint="Give the model's own config.json.") from None
    if "hidden_size" in of or "text_config" in of:
        try:
            return shape_of(of, name=name or config.parent.name)
        except ModelError as error:
            raise DataError(f"{config}: {error.message}", hint=error.hint) from None
    named = str(of.get("model_name") or of.get("_name_or_path") or name)  # a deployment's file: the model by name
    if not named:
        raise DataError(f"{config}: `hidden_size` is missing.", hint="Give the model's own config.json.")
    return models.find(named)[0]


def _notes(refused: int, note: str) -> None:
    if refused:
        say(f"{refused} requests can never fit: their prompts exceed the context or the cache.", style="yellow")
    if note:
        say(f"Note: {note}.", style="yellow")


def _show(of: "Agreement") -> None:
    rows = [
        ("time per output token", f"{of.tpot:+.1%}", f"{of.tpot_each:.1%}"),
        ("end to end", f"{of.e2e:+.1%}", f"{of.e2e_each:.1%}"),
        ("time to first token", f"{of.ttft:+.1%}", f"{of.ttft_each:.1%}"),
        ("end to end, 99th percentile", f"{of.e2e_p99:+.1%}", ""),
    ]
    rows = [row for row in rows if row[2] != "0.0%"]  # that was not measured
    columns = ("against the recording", "mean", "each request, mean error")
    print_table(columns, rows, right=columns[1:])


def _write(path: Path, requests: "list[Recorded] | Any", replayed: "list[Replayed]", basis: str) -> None:
    from baseload.twin.replay import tpot_ms  # noqa: PLC0415  # as above

    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for request, outcome in zip(requests, replayed, strict=True):
                who = (request.request_id, request.prompt_tokens, request.output_tokens)
                when = f"{request.arrival_ns / 1e9:.6f}"
                if outcome.refused:
                    writer.writerow((*who, when, "", "", "", "refused: can never fit"))
                    continue
                ttft = (outcome.first_ns - outcome.queued_ns) / 1e6
                e2e = (outcome.last_ns - outcome.queued_ns) / 1e6
                times = (f"{ttft:.3f}", f"{tpot_ms(request, outcome):.4f}", f"{e2e:.3f}")
                writer.writerow((*who, when, *times, basis))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}.", hint="Name another file with -o.") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.", hint="Name a file.") from None
