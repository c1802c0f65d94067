"""`baseload predict training` and `baseload predict throughput`: published tables answered by the limits model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    write_answers,
)
from baseload.cli.screen import print_json, say

if TYPE_CHECKING:
    from baseload.limits.plausible import LeftOut


def training(
    points: Points,
    output: Output,
    calibrate: Calibrate = None,
    catalogue: OwnCatalogue = None,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Step time of each training job: seconds, with what the answer rests on and its expected error."""
    # NumPy takes a moment to import; no other command should wait for it.
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415
    from baseload.limits.training.points import read_rows  # noqa: PLC0415
    from baseload.limits.training.predict import Predictor, added  # noqa: PLC0415

    check_output(output)
    predictor = Predictor(catalogue=own_book(catalogue).accelerators, models=Models(read_configs(configs)))
    data = read_file(points)
    asked = read_rows(data, name=str(points))
    if calibrate is not None:
        predictor = predictor.calibrate(calibration(calibrate, read_rows, lambda row: row.step_s > 0))
    answers = predictor.predict(asked)
    write_answers(output, data, [added(row, answer) for row, answer in zip(asked, answers, strict=True)])
    _report(
        output,
        [answer.step_s is not None for answer in answers],
        [answer.basis for answer in answers],
        predictor.left_out,
        as_json=as_json,
    )


def throughput(
    points: Points,
    output: Output,
    calibrate: Calibrate = None,
    catalogue: OwnCatalogue = None,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Throughput of each inference result in its own unit, and power at the wall."""
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415  # as above
    from baseload.limits.throughput.points import read_rows  # noqa: PLC0415
    from baseload.limits.throughput.predict import Predictor, added  # noqa: PLC0415

    check_output(output)
    predictor = Predictor(catalogue=own_book(catalogue).accelerators, models=Models(read_configs(configs)))
    data = read_file(points)
    asked = read_rows(data, name=str(points))
    if calibrate is not None:
        predictor = predictor.calibrate(calibration(calibrate, read_rows, lambda row: row.value > 0))
    answers = predictor.predict(asked)
    write_answers(output, data, [added(answer) for answer in answers])
    _report(
        output,
        [answer.throughput is not None for answer in answers],
        [answer.basis for answer in answers],
        predictor.left_out,
        as_json=as_json,
    )


def _report(
    output: Path, answered: Sequence[bool], bases: Sequence[str], left: Sequence["LeftOut"], *, as_json: bool
) -> None:
    calibrated = sum(basis.startswith("calibrated") for basis in bases)
    flagged = len(answered) - sum(answered)
    if as_json:
        counts = {"rows": len(answered), "answered": sum(answered), "calibrated": calibrated}
        print_json({"output": str(output), **counts, "left_out": [one.words for one in left]})
        return
    rest = f", {flagged} flagged with the missing figure" if flagged else ""
    say(f"{sum(answered)} of {len(answered)} rows answered ({calibrated} calibrated{rest}) in {output}.")
    for one in left:
        say(f"{one.words[0].upper()}{one.words[1:]}.")
