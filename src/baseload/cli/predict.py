"""`baseload predict serving` and `baseload predict power`: what the limits model says of deployments under a load."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from baseload.cli.catalogue import own_book
from baseload.cli.flags import AsJson
from baseload.cli.predict_tables import (
    Calibrate,
    Configs,
    Output,
    OwnCatalogue,
    Points,
    calibration,
    check_output,
    read_configs,
    read_file,
    say_if_in_vain,
    write_answers,
)
from baseload.cli.screen import print_json, say
from baseload.domain.errors import DataError
from baseload.limits.tables import read_table

if TYPE_CHECKING:
    from baseload.limits.serving.predict import Prediction

POWER = "The columns are those of docs/limits.md, section Power."
predict = typer.Typer(help="Ask the limits model how fast a deployment would be.", no_args_is_help=True)


@predict.command("serving")
def serving(
    points: Points,
    output: Output,
    calibrate: Calibrate = None,
    catalogue: OwnCatalogue = None,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Time per output token and time to first token of each row."""
    # NumPy takes a moment to import; no other command should wait for it.
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415
    from baseload.limits.serving import held_out  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415

    check_output(output)
    predictor = Predictor(catalogue=own_book(catalogue).accelerators, models=Models(read_configs(configs)))
    data = read_file(points)
    asked = held_out.read_points(data, name=str(points))
    if calibrate is not None:
        measured = calibration(calibrate, held_out.read_points, lambda point: point.tpot_ms > 0 or point.ttft_ms > 0)
        predictor = predictor.calibrate(measured)
    answers = predictor.predict(asked)
    write_answers(output, data, [_cells(answer) for answer in answers])
    calibrated = sum(answer.basis.startswith("calibrated") for answer in answers)
    flagged = sum(bool(answer.note) for answer in answers)
    if as_json:
        print_json({"output": str(output), "rows": len(answers), "calibrated": calibrated, "with_a_note": flagged})
    else:
        say(f"{len(answers)} rows answered ({calibrated} calibrated, {flagged} with a note) in {output}.")
        say_if_in_vain(calibrate, calibrated, "accelerator, engine (`system`, `backend`) and mode")


@predict.command("power")
def power(
    points: Points,
    output: Output,
    calibrate: Calibrate = None,
    catalogue: OwnCatalogue = None,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Watts while prompts are computed and while tokens are made, and joules per token, of each row."""
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415  # as above
    from baseload.limits.serving.power_held_out import read_power  # noqa: PLC0415
    from baseload.limits.serving.power_points import PowerPredictor, added  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415

    check_output(output)
    predictor = PowerPredictor(
        Predictor(catalogue=own_book(catalogue).accelerators, models=Models(read_configs(configs)))
    )
    data = read_file(points)
    _accelerators_under_load(data, points)
    asked = read_power(data, name=str(points))
    if calibrate is not None:
        measured = calibration(calibrate, read_power, lambda point: point.average > 0 or point.peak > 0)
        predictor = predictor.calibrate(measured)
    answers = predictor.predict(asked)
    write_answers(output, data, [added(answer) for answer in answers])
    calibrated = sum(answer.basis.startswith("calibrated") for answer in answers)
    if as_json:
        print_json({"output": str(output), "rows": len(answers), "calibrated": calibrated})
    else:
        say(f"{len(answers)} rows answered ({calibrated} calibrated) in {output}.")
        say_if_in_vain(calibrate, calibrated, "accelerator (`hardware`)")


def _accelerators_under_load(data: bytes, points: Path) -> None:
    columns, _ = read_table(data, name=str(points), hint=POWER)
    for needed in ("model", "hardware"):
        if needed not in columns and "accelerators_total" not in columns:
            raise DataError(f"{points}: no column `{needed}`.", hint=POWER)
    if "accelerators_total" in columns:
        raise DataError(
            f"{points}: whole systems, not accelerators under a load.",
            hint="`baseload predict throughput` answers published results, with power at the wall.",
        )


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
