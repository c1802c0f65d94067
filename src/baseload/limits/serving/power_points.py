"""Power of serving points: rows of a table answered with watts by phase and joules per token.

Columns: those of `splitwise_perf` (`model`, `hardware`, `prompt_size`, `batch_size`, `token_size`, `tensor_parallel`;
`prompt_time` and `token_time` in ms where they were measured, else they are predicted), or the same things under the
names of serving points (`model_path`, `system`, `isl`, `osl`, `tp_size`, `concurrency`). A cap is `power_cap_w`, or a
share of the sheet's power in `power_cap`; "pcap" in the name of the hardware is half of it, as Splitwise set it.
Measured, in a table that calibrates: `peak_power` and `average_power`, shares of the sheet's power (or watts of one
accelerator, where above 5).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.quantization import format_of, of_formats
from baseload.limits.serving.features import Counts, counts_of
from baseload.limits.serving.points import Layout
from baseload.limits.serving.power import JOULES_PER_BYTE, MEMORY_DRAW, Draw, Phases, fit_draw
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.replica import step_cost

CAPPED = 0.5  # "pcap" of Splitwise
WATTS_FROM = 5.0  # a measured power above this is in watts, not a share
_HINT = "The columns are those of docs/limits.md, section Power."
_MODELS = {"llama2": "llama-2"}


class PowerPoint(Struct, frozen=True):
    """One deployment and load, and what was measured there (0: nothing)."""

    line: int
    model: str
    system: str
    gpus: int
    prompt: int
    batch: float
    output: int
    weights: str = ""
    prompt_s: float = 0.0
    token_s: float = 0.0
    cap: float = 1.0  # share of the sheet's power
    cap_w: float = 0.0
    peak: float = 0.0
    average: float = 0.0


class PowerAnswer(Struct, frozen=True):
    """Shares of the sheet's power and watts of the whole deployment; None where the sheet gives no power."""

    peak: float
    average: float
    prompt_ms: float
    token_ms: float
    prompt_slowdown: float  # times longer than without the cap; 1 where the time was measured
    token_slowdown: float
    peak_w: float | None
    average_w: float | None
    joules_per_token: float | None  # of output, prompt included
    basis: str
    note: str


def parse_power(row: Mapping[str, str | None], *, line: int, name: str) -> PowerPoint:
    """A point from a row of text; DataError names file, line and column."""
    where = f"{name} line {line}"

    def text(*names: str) -> str:
        return next((value for key in names if (value := (row.get(key) or "").strip())), "")

    def number(*names: str, default: float) -> float:
        value = text(*names)
        try:
            found = float(value) if value else default
        except ValueError:
            found = -1.0
        if not 0 <= found < 1e12:
            raise DataError(f"{where}: `{names[0]}` must be a number from 0 to 1e12, not {value!r}.", hint=_HINT)
        return found

    model, system = text("model", "model_path"), text("hardware", "system", "accelerator")
    if not model or not system:
        missing = "model" if not model else "hardware"
        raise DataError(f"{where}: `{missing}` is empty.", hint=_HINT)
    cap = number("power_cap", default=1.0)
    if re.search(r"pcap", system, re.IGNORECASE):
        system, cap = re.sub(r"[-_ ]*pcap", "", system, flags=re.IGNORECASE), min(cap, CAPPED)
    for short, long in _MODELS.items():
        model = re.sub(rf"^{short}(?=-)", long, model)
    return PowerPoint(
        line=line,
        model=model,
        system=system,
        gpus=max(1, int(number("tensor_parallel", "tp_size", "gpus", default=1))),
        prompt=max(1, int(number("prompt_size", "isl", "prompt_tokens", default=1024))),
        batch=max(1.0, number("batch_size", "concurrency", default=1)),
        output=max(1, int(number("token_size", "osl", "output_tokens", default=128))),
        weights=format_of(text("precision", "gemm_quant_mode")) or "",
        prompt_s=number("prompt_time", default=0.0) / 1e3,
        token_s=number("token_time", default=0.0) / 1e3,
        cap=cap,
        cap_w=number("power_cap_w", default=0.0),
        peak=number("peak_power", default=0.0),
        average=number("average_power", default=0.0),
    )


class PowerPredictor:
    """Answers points, after `calibrate` with some measured ones or without."""

    def __init__(self, predictor: Predictor | None = None, *, draw: Draw | None = None) -> None:
        self.predictor = predictor or Predictor()
        self._draw = draw or Draw()
        self._draws: dict[str, Draw] = {}
        self._known: Counter[str] = Counter()

    def calibrate(self, points: Sequence[PowerPoint]) -> "PowerPredictor":
        """A predictor whose curve of each accelerator measured is nearer to what was measured."""
        after = PowerPredictor(self.predictor, draw=self._draw)
        measured = [p for p in points if p.average > 0 or p.peak > 0]
        for system in dict.fromkeys(self._name(p) for p in measured):
            mine = [p for p in measured if self._name(p) == system]
            chip = self.predictor.chips.find(mine[0].system)
            phases = [self._phases(p)[0] for p in mine]
            peak, average = [_share(p.peak, chip) for p in mine], [_share(p.average, chip) for p in mine]
            after._draws[system] = fit_draw(phases, peak, average, start=self._draw)
            after._known[system] = len(mine)
        return after

    def predict(self, points: Sequence[PowerPoint]) -> list[PowerAnswer]:
        """One answer a point, in order."""
        return [self._answer(point) for point in points]

    def _answer(self, point: PowerPoint) -> PowerAnswer:
        chip = self.predictor.chips.find(point.system)
        name = self._name(point)
        phases, prompt_s, token_s = self._phases(point)
        draw = self._draws.get(name, self._draw)
        prompt, token = phases.shares(draw)
        slower = [1.0, 1.0]
        for i, measured in enumerate((point.prompt_s, point.token_s)):
            if not measured:  # a time that was measured was measured under the cap
                phase = phases.capped(draw)[i]
                slower[i] = phase.slowdown
                prompt, token = (phase.share, token) if i == 0 else (prompt, phase.share)
        prompt_s, token_s = prompt_s * slower[0], token_s * slower[1]
        sheet_w = chip.tdp_w * point.gpus if chip.tdp_w else None
        energy = prompt_s * prompt + token_s * token * (point.output - 1)
        notes = [self.predictor.chips.note(point.system)]
        if sheet_w is None:
            notes.append(f"the catalogue has no tdp_w for {chip.name}: shares of it only")
        if not (point.prompt_s and point.token_s):
            notes.append("times predicted")
        if max(prompt, token) > phases.cap + 1e-6 and phases.cap < 1.0:
            notes.append(f"the cap of {phases.cap:.2f} is below what the slowest clock draws")
        known = self._known[name]
        return PowerAnswer(
            peak=max(prompt, token),
            average=token,
            prompt_ms=prompt_s * 1e3,
            token_ms=token_s * 1e3,
            prompt_slowdown=slower[0],
            token_slowdown=slower[1],
            peak_w=sheet_w and sheet_w * max(prompt, token),
            average_w=sheet_w and sheet_w * token,
            joules_per_token=sheet_w and sheet_w * energy / point.output / point.batch,
            basis=f"calibrated: {known} points of {name}" if known else "sheet power and a curve measured on A100",
            note="; ".join(note for note in notes if note),
        )

    def _name(self, point: PowerPoint) -> str:
        return self.predictor.chips.identifier(point.system)

    def _phases(self, point: PowerPoint) -> tuple[Phases, float, float]:
        """Shares in use, and the times of a prompt (of the whole batch) and of a token."""
        chip = self.predictor.chips.find(point.system)
        shape = self.predictor.models.find(point.model)[0]
        weights = point.weights or shape.quantization.dense
        counts = counts_of(shape, of_formats(weights, weights), chip, Layout(gpus=point.gpus))
        prompt_s, token_s = point.prompt_s, point.token_s
        context = point.batch * (point.prompt + point.output / 2)
        if not (prompt_s and token_s):
            cost = step_cost(shape, chip, tp=point.gpus, weights=weights, max_rows=1, predictor=self.predictor)
            tokens = int(point.prompt * point.batch)
            alone = cost.mixed_ns(tokens=tokens, pairs=tokens * point.prompt // 2, rows=0, context_tokens=0) / 1e9
            prompt_s, token_s = prompt_s or alone, token_s or cost.decode_ns(int(point.batch), int(context)) / 1e9
        prompts = point.prompt * point.batch
        cap = point.cap_w / chip.tdp_w if point.cap_w and chip.tdp_w else point.cap
        return (
            Phases(
                prompt_memory=_read_s(counts, prompts, 0.0) / prompt_s,
                prompt_compute=_math_s(counts, prompts) / prompt_s,
                token_memory=_read_s(counts, point.batch, context) / token_s,
                token_compute=_math_s(counts, point.batch) / token_s,
                cap=cap,
                memory_draw=_memory_draw(chip),
            ),
            prompt_s,
            token_s,
        )


def _read_s(counts: Counts, tokens: float, context: float) -> float:
    """Seconds of reading at full bandwidth: weights, experts met, cache."""
    experts = counts.experts.read_s * counts.experts.covered(tokens) if counts.experts else 0.0
    return counts.dense_read_s + experts + context * sum(a.read_s for a in counts.attention)


def _math_s(counts: Counts, tokens: float) -> float:
    """Seconds of multiplying at full speed."""
    return tokens * (counts.dense_math_s + (counts.experts.math_s if counts.experts else 0.0))


def _memory_draw(chip: Accelerator) -> float:
    """Of the sheet's power, by memory at its full bandwidth."""
    if not (chip.tdp_w and chip.memory_gb_per_s):
        return MEMORY_DRAW
    return min(0.5, JOULES_PER_BYTE * chip.memory_gb_per_s * 1e9 / chip.tdp_w)


def _share(power: float, chip: Accelerator) -> float:
    return power / chip.tdp_w if power > WATTS_FROM and chip.tdp_w else power


def added(answer: PowerAnswer) -> dict[str, Any]:
    """The cells a row gets."""

    def watts(value: float | None, form: str = ".1f") -> str:
        return "" if value is None else format(value, form)

    return {
        "predicted_peak_power": f"{answer.peak:.4f}",
        "predicted_average_power": f"{answer.average:.4f}",
        "predicted_prompt_ms": f"{answer.prompt_ms:.3f}",
        "predicted_token_ms": f"{answer.token_ms:.4f}",
        "prompt_slowdown": f"{answer.prompt_slowdown:.4f}",
        "token_slowdown": f"{answer.token_slowdown:.4f}",
        "peak_w": watts(answer.peak_w),
        "power_w": watts(answer.average_w),
        "energy_j_per_token": watts(answer.joules_per_token, ".5g"),
        "basis": answer.basis,
        "note": answer.note,
    }
