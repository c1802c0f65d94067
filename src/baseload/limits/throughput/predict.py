"""Predictions of published inference results: what a sample costs on the sheet, at calibrated rates."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from msgspec import Struct

from baseload.domain.errors import BaseloadError, MissingFigure
from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, read_catalogue
from baseload.limits.catalogue.models import Models, family_of
from baseload.limits.catalogue.names import mixture
from baseload.limits.plausible import LeftOut, Measured, left_out, notes_of
from baseload.limits.quantization import format_of
from baseload.limits.ridge import Fitted, Floats, Traits, fit, read_shipped, unfitted
from baseload.limits.shapes import ModelShape
from baseload.limits.throughput.model import COLUMNS, FORM, POWER_FORM, Costs, costs_of
from baseload.limits.throughput.points import LATENCY_S, Row, distinct

WORKLOADS: dict[str, tuple[str, float, float]] = {
    "gptj": ("EleutherAI/gpt-j-6B", 780, 69),
    "llama2-70b": ("meta-llama/Llama-2-70B", 294, 294.45),
    "mixtral-8x7b": ("mistralai/Mixtral-8x7B-v0.1", 275, 144.84),
    "llama3.1-405b": ("meta-llama/Meta-Llama-3.1-405B", 9428, 684.68),
    "llama3.1-8b": ("meta-llama/Meta-Llama-3.1-8B", 778, 128),
    "llama3.1-8b-edge": ("meta-llama/Meta-Llama-3.1-8B", 778, 128),
    "deepseek-r1": ("deepseek-ai/DeepSeek-R1", 800, 3880),
    "gpt-oss-120b": ("openai/gpt-oss-120b", 1000, 1500),
}
"""Model, mean tokens in, mean tokens out. MLCommons inference benchmarks' own data sets: reference target lengths
(294.45, 144.84, 684.68 and 3,880 tokens a sample), CNN/DailyMail (778 in, 128 out; GPT-J writes about 69). The last
is assumed."""

ASSUMED = (1000.0, 1000.0)
STAND_IN = Accelerator(
    name="a processor not in the catalogue",
    source="stands for a sheet nobody gave; only measured points of the same processor make an answer of it",
    bf16_tflops=100,
    memory_gb=512,
    memory_gb_per_s=500,
)


class Answer(Struct, frozen=True, kw_only=True):
    """What is said of a row. Without a throughput, `note` names the missing figure. `throughput` is in `unit`."""

    throughput: float | None
    unit: str
    tokens_per_s: float | None
    basis: str
    expected_error: float | None
    power_w: float | None = None
    power_basis: str = ""
    note: str = ""


class Prepared(Struct, frozen=True):
    """A row counted: costs and share of the whole by part of a mixed system, traits, and what is missing."""

    parts: tuple[tuple[Costs, float, Traits], ...]  # (costs, accelerators, traits)
    osl: float
    sheet_w: float | None
    note: str
    blocked: str  # a kind of trait that must be calibrated before the row can be answered


class Predictor:
    """Answers rows; `calibrate` gives another one that rests on measured rows."""

    def __init__(
        self,
        *,
        catalogue: Catalogue | None = None,
        models: Models | None = None,
        fitted: Fitted | None = None,
        power: Fitted | None = None,
    ) -> None:
        self.catalogue = catalogue or read_catalogue()
        self.models = models or Models()
        self.fitted = fitted or shipped()
        self.power = power or unfitted(POWER_FORM)
        self.left_out: tuple[LeftOut, ...] = ()

    def calibrate(self, rows: Sequence[Row]) -> "Predictor":
        """The predictor that measured rows give: one row a measurement; rows without a value are passed over.

        Rows whose unit cannot be what they say are left out (limits/plausible.py), and answers of their model say so.
        """
        once = [rows[i] for i in distinct(rows)]
        prepared = [(row, self._prepare(row)) for row in once if row.value > 0]
        used = [(row, p) for row, p in prepared if len(p.parts) == 1]
        odd = left_out([self._measured(row, p) for row, p in used])
        used = [pair for i, pair in enumerate(used) if i not in odd]
        costs = table([p.parts[0][0] for _, p in used])
        traits = [p.parts[0][2] for _, p in used]
        seconds = np.array([p.parts[0][1] / _samples_per_s(row, p.osl) for row, p in used])
        fitted = fit(self.fitted, costs, traits, seconds)
        powered = [(row, p) for row, p in used if row.power_w > 0 and p.sheet_w]
        power = fit(
            self.power,
            np.array([[p.sheet_w or 0.0] for _, p in powered]).reshape(-1, 1),
            [_power_traits(p.parts[0][2]) for _, p in powered],
            np.array([row.power_w for row, _ in powered]),
        )
        after = Predictor(catalogue=self.catalogue, models=self.models, fitted=fitted, power=power)
        after.left_out = tuple(odd.values())
        return after

    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer per row, in order."""
        prepared = [self._prepare(row) for row in rows]
        parts = [part for p in prepared for part in p.parts]
        seconds, errors = self.fitted.predict(table([part[0] for part in parts]), [part[2] for part in parts])
        answers, at = [], 0
        for row, p in zip(rows, prepared, strict=True):
            mine = slice(at, at + len(p.parts))
            at += len(p.parts)
            answers.append(self._answer(row, p, seconds[mine], errors[mine]))
        return answers

    def _measured(self, row: Row, prepared: Prepared) -> Measured:
        """A row as the rules of what is plausible see it: seconds of one accelerator per sample."""
        costs, many, _ = prepared.parts[0]
        id_ = next((id_ for id_, _ in mixture(row.accelerator, self.catalogue, total=row.accelerators)), None)
        sheet = self.catalogue.entries[id_] if id_ and not prepared.blocked else None
        bare = unfitted(FORM).predict(table([costs]), [()])[0][0]
        floor = 0.0
        if sheet is not None:
            shape, isl, osl, _ = self._workload(row)
            peak = max(sheet.bf16_tflops or 0.0, sheet.fp8_tflops or 0.0, sheet.fp4_tflops or 0.0) * 1e12
            floor = (isl + osl) * shape.flops_per_token() / peak
        return Measured(
            line=row.line,
            group=row.model,
            seconds=many / _samples_per_s(row, prepared.osl),
            floor_s=floor,
            usual_s=float(bare) if sheet is not None and row.counts != "latency" else 0.0,
            tokens=prepared.osl,
        )

    def uncorrected_s(self, accelerator: str, model: str) -> float | None:
        """Seconds of one accelerator per sample of a model on eight of a kind, before any correction; None: blank."""
        prepared = self._prepare(Row(line=0, model=model, accelerator=accelerator, accelerators=8))
        if prepared.blocked or not prepared.parts:
            return None
        seconds, _ = unfitted(FORM).predict(table([prepared.parts[0][0]]), [()])
        return float(seconds[0])

    def _answer(self, row: Row, prepared: Prepared, seconds: Floats, errors: Floats) -> Answer:
        unit = row.unit or "Tokens/s"
        if not prepared.parts or (prepared.blocked and not self._knows(prepared)):
            return Answer(
                throughput=None, unit=unit, tokens_per_s=None, basis="none", expected_error=None, note=prepared.note
            )
        samples = sum(part[1] / s for part, s in zip(prepared.parts, seconds.tolist(), strict=True))
        match row.counts:
            case "latency":
                value = 1.0 / samples / LATENCY_S[unit.lower()]
            case "samples":
                value = samples
            case _:
                value = samples * prepared.osl
        power, power_basis = self._power(prepared)
        return Answer(
            throughput=value,
            unit=unit,
            tokens_per_s=samples * prepared.osl,
            basis=self._basis(prepared),
            expected_error=float(np.max(errors)),
            power_w=power,
            power_basis=power_basis,
            note="; ".join(note for note in (prepared.note, notes_of(self.left_out, row.model)) if note),
        )

    def _knows(self, prepared: Prepared) -> bool:
        kinds = prepared.blocked.split("+")
        known = self.fitted.known | self.fitted.shipped_traits
        return all((kind, dict(part[2])[kind]) in known for part in prepared.parts for kind in kinds)

    def _basis(self, prepared: Prepared) -> str:
        of = dict(prepared.parts[0][2])
        known = self.fitted.known
        if ("pair", of["pair"]) in known:
            return f"calibrated: {of['model']} on {of['accelerator']}"
        have = [of[kind] for kind in ("model", "accelerator") if (kind, of[kind]) in known]
        if len(have) == 2:
            return f"calibrated apart: {have[0]}, and {have[1]}"
        if have:
            return f"calibrated on {have[0]} alone; the rest by its sheet and shape"
        if any((kind, of[kind]) in self.fitted.shipped_traits for kind in ("model", "accelerator")):
            return f"sheet and shape, at shipped rates ({self.fitted.shipped_basis})"
        return "calibrated on others; sheet and shape" if self.fitted.points else "sheet and shape only"

    def _power(self, prepared: Prepared) -> tuple[float | None, str]:
        if not prepared.sheet_w or not prepared.parts:
            return None, ""
        traits = _power_traits(prepared.parts[0][2])
        watts, _ = self.power.predict(np.array([[prepared.sheet_w]]), [traits])
        known = sum(trait in self.power.known for trait in traits)
        return float(watts[0]), f"calibrated on {self.power.points} rows" if known else "sheet power × a usual share"

    def _prepare(self, row: Row) -> Prepared:
        """Count a row; every failure becomes a note."""
        shape, isl, osl, notes = self._workload(row)
        form_notes: list[str] = []
        parts: list[tuple[Costs, float, Traits]] = []
        blocked: list[str] = []
        watts: float | None = 0.0
        named = row.accelerator and row.accelerator.upper() not in ("N/A", "NONE")
        for id_, count in mixture(row.accelerator, self.catalogue, total=row.accelerators):
            sheet = self.catalogue.entries[id_] if id_ else STAND_IN
            name = id_ or (row.accelerator if named else row.host_cpu).lower() or "a processor not named"
            many = float(count) if named else float(row.cpus)
            if many < 1:
                return Prepared((), osl, None, "missing: accelerators_total", "pair")
            if id_ is None:
                notes.append(f"missing: the sheet of {name!r}")
                blocked.append("accelerator")
            form = _form(row, sheet)
            try:
                costs = _count(shape, sheet, form, row, isl, osl, int(many))
            except MissingFigure as error:
                notes.append(f"missing: {error.figure} of {error.owner}")
                blocked.append("accelerator")
                costs = _count(shape, sheet.filled(STAND_IN), form, row, isl, osl, int(many))
            except BaseloadError as error:
                return Prepared((), osl, None, error.message, "pair")
            parts.append((costs, many, _traits(row, name, sheet, form, listed=not blocked)))
            watts = None if watts is None or sheet.tdp_w is None else watts + sheet.tdp_w * many
        notes += form_notes
        return Prepared(tuple(parts), osl, watts, "; ".join(dict.fromkeys(notes)), "+".join(dict.fromkeys(blocked)))

    def _workload(self, row: Row) -> tuple[ModelShape, float, float, list[str]]:
        known = WORKLOADS.get(row.model.lower())
        shape, basis = self.models.find(known[0] if known else row.model)
        notes = [] if basis == "config" else [f"missing: the shape of {row.model}; guessed from its name"]
        notes += [f"assumed: {what}" for what in shape.assumed]
        isl, osl = known[1:] if known else ASSUMED
        if not known and not (row.isl and row.osl):
            notes.append(f"missing: token counts of {row.model} (isl, osl); {isl:.0f} in and {osl:.0f} out assumed")
        return shape, row.isl or isl, row.osl or osl, notes


def shipped() -> Fitted:
    """The form at the values shipped with the package."""
    corrections, basis = read_shipped((files("baseload.limits.catalogue") / "throughput.toml").read_bytes())
    return unfitted(FORM, shipped=corrections, basis=basis)


def table(costs: Sequence[Costs]) -> Floats:
    """Costs as a matrix, a row each."""
    cells = [[getattr(cost, name) for name in COLUMNS] for cost in costs]
    return np.array(cells, dtype=np.float64).reshape(len(costs), len(COLUMNS))


def added(answer: Answer) -> dict[str, Any]:
    """The cells a row gets."""
    return {
        "throughput": "" if answer.throughput is None else f"{answer.throughput:.6g}",
        "throughput_unit": answer.unit,
        "tokens_per_s": "" if answer.tokens_per_s is None else f"{answer.tokens_per_s:.6g}",
        "basis": answer.basis,
        "expected_error": "" if answer.expected_error is None else f"{answer.expected_error:.3f}",
        "power_w": "" if answer.power_w is None else f"{answer.power_w:.1f}",
        "note": answer.note,
    }


def _count(
    shape: ModelShape, sheet: Accelerator, form: str, row: Row, isl: float, osl: float, accelerators: int
) -> Costs:
    alone = 1.0 if row.scenario == "singlestream" else 0.0
    return costs_of(shape, sheet, form=form, isl=isl, osl=osl, accelerators=accelerators, sequences=alone)


def _samples_per_s(row: Row, osl: float) -> float:
    if row.counts == "latency":
        return 1.0 / (row.value * LATENCY_S[row.unit.lower()])
    return row.value if row.counts == "samples" else row.value / osl


def _form(row: Row, sheet: Accelerator) -> str:
    """The format multiplied in.

    Tables call 8-bit runs of older rounds fp16, where that was the data's type, so a 16-bit or blank cell means the
    narrowest float its chip's usual engine runs.
    """
    said = format_of(row.precision.removeprefix("u")) if row.precision else None
    if said in (None, "bf16") and sheet.fp8_tflops is not None:
        preview_of_four = sheet.fp4_tflops is not None and sheet.vendor == "NVIDIA" and row.engine == "tensorrt"
        return "nvfp4" if preview_of_four else "fp8"
    return said or "bf16"


def _traits(row: Row, name: str, sheet: Accelerator, form: str, *, listed: bool) -> Traits:
    model = family_of(row.model)
    traits: list[tuple[str, str]] = [
        ("model", model),
        ("accelerator", name),
        ("vendor", f"{sheet.vendor}/{row.engine}"),
        ("pair", f"{name}/{model}"),
        ("form", f"{sheet.vendor}/{form}"),
        ("written", f"{sheet.vendor}/{row.precision}/{row.round}"),
        ("scenario", row.scenario),
        ("scenario_model", f"{row.scenario}/{model}"),
        ("scenario_accelerator", f"{row.scenario}/{name}"),
        ("scenario_pair", f"{row.scenario}/{name}/{model}"),
    ]
    if row.engine:
        traits.append(("engine", f"{row.engine}/{sheet.vendor}"))
        traits.append(("build", f"{row.engine}/{row.engine_version}/{row.round}"))
    if row.capped:
        traits.append(("capped", name))
    if row.nodes > 1:
        traits.append(("nodes", row.engine or "several"))
    if row.submitter:
        traits.append(("site", row.submitter))
    if row.division and row.division != "closed":
        traits.append(("division", row.division))
    if not listed:
        traits.append(("unlisted", name))
    return tuple(traits)


def _power_traits(traits: Traits) -> Traits:
    of = dict(traits)
    wanted: list[tuple[str, str]] = [
        (kind, of[kind]) for kind in ("accelerator", "model", "capped", "scenario", "vendor") if kind in of
    ]
    if "capped" in of:
        wanted.append(("capped_model", of["model"]))
    return tuple(wanted)
