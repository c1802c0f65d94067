"""Predictions of published training jobs: the fastest layout that fits, timed at calibrated rates."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from msgspec import Struct

from baseload.domain.errors import BaseloadError, MissingFigure
from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, Fabric, read_catalogue, read_fabric
from baseload.limits.catalogue.models import Models
from baseload.limits.catalogue.names import recognise
from baseload.limits.collectives import fabric_of
from baseload.limits.plausible import LeftOut, Measured, left_out, notes_of
from baseload.limits.ridge import Fitted, Traits, fit, read_shipped, unfitted
from baseload.limits.training.benchmarks import Benchmark, benchmark_of
from baseload.limits.training.fit import FORM, rates_of, table
from baseload.limits.training.points import Row, whole_system
from baseload.limits.training.search import layouts
from baseload.limits.training.step import Cost, Parallel, Rates, cost_of
from baseload.limits.training.work import WEIGHT_BYTES

STAND_IN = Accelerator(
    name="an accelerator not in the catalogue",
    source="stands for a sheet nobody gave; only measured points of the same accelerator make an answer of it",
    bf16_tflops=1000,
    fp8_tflops=2000,
    memory_gb=144,
    memory_gb_per_s=4000,
    scale_up_gb_per_s=450,
    scale_up_domain=8,
    scale_out_gbit_per_s=400,
)
FAR_ERROR = 0.02  # more for each doubling of the accelerators beyond those calibrated


class Answer(Struct, frozen=True, kw_only=True):
    """What is said of a row. Without a step time, `note` names the missing figure."""

    step_s: float | None
    basis: str
    expected_error: float | None
    layout: Parallel | None = None
    note: str = ""


class Prepared(Struct, frozen=True):
    """A row's cost and traits, or the note that stands in their place."""

    cost: Cost | None
    traits: Traits
    layout: Parallel | None
    note: str
    blocked: str  # what is missing, so that only points of the same kind can answer


class Predictor:
    """Answers rows; `calibrate` gives another one that rests on measured rows."""

    def __init__(
        self,
        *,
        catalogue: Catalogue | None = None,
        models: Models | None = None,
        latencies: Fabric | None = None,
        fitted: Fitted | None = None,
    ) -> None:
        self.catalogue = catalogue or read_catalogue()
        self.models = models or Models()
        self.latencies = latencies or read_fabric()
        self.fitted = fitted or shipped()
        self.left_out: tuple[LeftOut, ...] = ()
        self._largest: dict[tuple[str, str], int] = {}
        self._layouts: dict[tuple[object, ...], tuple[Parallel, str]] = {}

    def calibrate(self, rows: Sequence[Row]) -> "Predictor":
        """The predictor that measured rows give; rows without a measured step are passed over.

        Rows whose unit cannot be what they say are left out (limits/plausible.py), and answers of their benchmark
        say so.
        """
        whole = [row for row in whole_system(rows) if row.step_s > 0]
        prepared = [(row, self._prepare(row)) for row in whole]
        usable = [(row, p) for row, p in prepared if p.cost is not None]
        odd = self._implausible(usable)
        usable = [pair for i, pair in enumerate(usable) if i not in odd]
        costs = table([p.cost for _, p in usable if p.cost is not None])
        traits = [p.traits for _, p in usable]
        fitted = fit(self.fitted, costs, traits, np.array([row.step_s for row, _ in usable]))
        after = Predictor(catalogue=self.catalogue, models=self.models, latencies=self.latencies, fitted=fitted)
        after.left_out = tuple(odd.values())
        for (row, _), of in zip(usable, traits, strict=True):
            for trait in of:
                after._largest[trait] = max(after._largest.get(trait, 0), row.accelerators)
        return after

    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer per row, in order."""
        prepared = [self._prepare(row) for row in rows]
        usable = [i for i, p in enumerate(prepared) if p.cost is not None]
        said: dict[int, tuple[float, float]] = {}
        if usable:
            costs = table([cost for p in prepared if (cost := p.cost) is not None])
            steps, errors = self.fitted.predict(costs, [prepared[i].traits for i in usable])
            said = dict(zip(usable, zip(steps.tolist(), errors.tolist(), strict=True), strict=True))
        return [self._answer(rows[i], p, said.get(i)) for i, p in enumerate(prepared)]

    def implausible(self, rows: Sequence[Row]) -> list[LeftOut]:
        """Measured rows whose unit cannot be what their columns say: a calibration would leave them out."""
        prepared = [(row, self._prepare(row)) for row in rows if row.step_s > 0]
        return list(self._implausible([(row, p) for row, p in prepared if p.cost is not None]).values())

    def _implausible(self, rows: Sequence[tuple[Row, Prepared]]) -> dict[int, LeftOut]:
        return left_out([self._measured(row, p.cost) for row, p in rows if p.cost is not None])

    def _measured(self, row: Row, cost: Cost) -> Measured:
        """A row as the rules of what is plausible see it."""
        id_ = recognise(row.accelerator, self.catalogue)
        sheet = self.catalogue.entries[id_] if id_ else None
        benchmark = benchmark_of(row.benchmark, seq_len=row.seq_len, models=self.models)
        bare = unfitted(FORM).predict(table([cost]), [()])[0][0]
        floor = 0.0
        if sheet is not None and sheet.bf16_tflops is not None and not benchmark.missing:
            peak = max(sheet.bf16_tflops, sheet.fp8_tflops or 0.0, sheet.fp4_tflops or 0.0) * 1e12
            floor = row.batch * benchmark.work.training_flops / peak / row.accelerators
        return Measured(
            line=row.line,
            group=row.benchmark,
            seconds=row.step_s,
            floor_s=floor,
            usual_s=0.0 if sheet is None else float(bare),
            tokens=float(benchmark.work.sample_tokens),
        )

    def uncorrected_s(self, accelerator: str, benchmark: str) -> float | None:
        """Seconds of a step of 64 samples on sixteen of a kind, before any correction; None: a figure is blank."""
        row = Row(line=0, benchmark=benchmark, accelerator=accelerator, accelerators=16, batch=64)
        prepared = self._prepare(row)
        if prepared.blocked or prepared.cost is None:
            return None
        return float(unfitted(FORM).predict(table([prepared.cost]), [()])[0][0])

    def rates(self, id_: str, *, kind: str = "llm") -> Rates:
        """Rates reached on an accelerator of the catalogue by a kind of job ("llm", "lora", …), for plans."""
        sheet = self.catalogue.find(id_)
        id_ = next(key for key, entry in self.catalogue.entries.items() if entry is sheet)
        traits = (
            ("kind", kind),
            ("vendor", f"{sheet.vendor}/{kind}"),
            ("silicon", f"{sheet.vendor} {sheet.bf16_tflops or 0:g}"),
            ("accelerator", id_),
        )
        rests = f"{self.fitted.points} measured steps" if self.fitted.points else self.fitted.shipped_basis
        return rates_of(self.fitted.theta([traits])[0], basis=f"rates fitted to {rests}" if rests else Rates().basis)

    def _answer(self, row: Row, prepared: Prepared, said: tuple[float, float] | None) -> Answer:
        of = dict(prepared.traits)
        known = {kind: (kind, of[kind]) in self.fitted.known for kind in ("pair", "accelerator", "benchmark")}
        before = {kind: (kind, of[kind]) in self.fitted.shipped_traits for kind in known}
        enough = {
            "": True,
            "accelerator": known["accelerator"],
            "benchmark": known["benchmark"],
            "pair": known["pair"],
        }
        if said is None or not enough[prepared.blocked]:
            return Answer(step_s=None, basis="none", expected_error=None, note=prepared.note)
        step_s, error = said
        if known["pair"]:
            basis = f"calibrated: {of['benchmark']} on {of['accelerator']}"
            largest = self._largest.get(("pair", of["pair"]), row.accelerators)
            if row.accelerators > largest:
                error += FAR_ERROR * np.log2(row.accelerators / largest)
                basis += f", up to {largest} accelerators"
        elif known["accelerator"] and known["benchmark"]:
            basis = f"calibrated apart: {of['benchmark']}, and {of['accelerator']}"
        elif known["accelerator"] or known["benchmark"]:
            which = of["accelerator"] if known["accelerator"] else of["benchmark"]
            basis = f"calibrated on {which} alone; the rest by its sheet and shape"
        elif before["accelerator"] or before["benchmark"]:
            basis = f"sheet and shape, at shipped rates ({self.fitted.shipped_basis})"
        else:
            basis = "sheet and shape only" if not self.fitted.points else "calibrated on others; sheet and shape"
        return Answer(
            step_s=step_s,
            basis=basis,
            expected_error=float(error),
            layout=prepared.layout,
            note="; ".join(note for note in (prepared.note, notes_of(self.left_out, row.benchmark)) if note),
        )

    def _prepare(self, row: Row) -> Prepared:
        """Count a row; every failure becomes a note."""
        id_ = recognise(row.accelerator, self.catalogue)
        sheet = self.catalogue.entries[id_] if id_ else STAND_IN
        name = id_ or (row.accelerator.strip().lower() or "an accelerator not named")
        benchmark = benchmark_of(row.benchmark, seq_len=row.seq_len, models=self.models)
        traits = self._traits(row, name, sheet, benchmark)
        notes, blocked = [], ""
        if id_ is None:
            notes.append(f"missing: the sheet of accelerator {row.accelerator!r}")
            blocked = "accelerator"
        if benchmark.missing:
            notes.append(f"missing: {benchmark.missing}")
            blocked = "pair" if blocked else "benchmark"
        if row.accelerators < 1 or row.batch < 1:
            absent = "accelerators_total" if row.accelerators < 1 else "global_batch_size"
            return Prepared(None, traits, None, f"missing: {absent}", "pair")
        try:
            layout, note = self._layout(row, sheet, benchmark)
            fabric = fabric_of(sheet, self.latencies)
            cost = cost_of(benchmark.work, layout, sheet, fabric, batch=row.batch, form=benchmark.form)
        except MissingFigure as error:
            if error.figure not in ("bf16_tflops", "memory_gb", "memory_gb_per_s"):
                return Prepared(None, traits, None, f"missing: {error.figure} of {error.owner}", "pair")
            sheet = sheet.filled(STAND_IN)
            layout, note = self._layout(row, sheet, benchmark)
            fabric = fabric_of(sheet, self.latencies)
            cost = cost_of(benchmark.work, layout, sheet, fabric, batch=row.batch, form=benchmark.form)
            notes.append(f"missing: {error.figure} of {error.owner}")
            blocked = "pair" if blocked == "benchmark" else "accelerator"
        except BaseloadError as error:
            blank = sheet.scale_out_gbit_per_s is None and "scale-out" in error.message
            note = f"missing: scale_out_gbit_per_s of {sheet.name}" if blank else error.message
            return Prepared(None, traits, None, note, "pair")
        if note:
            notes.append(note)
        return Prepared(cost, traits, layout, "; ".join(notes), blocked)

    def _layout(self, row: Row, sheet: Accelerator, benchmark: Benchmark) -> tuple[Parallel, str]:
        """What the row says, or the best there is; searched once for equal jobs."""
        job = (row.accelerators, row.batch, row.tensor, row.pipeline, row.context, row.seq_len, row.benchmark, sheet)
        if job not in self._layouts:
            self._layouts[job] = self._chosen(row, sheet, benchmark)
        return self._layouts[job]

    def _chosen(self, row: Row, sheet: Accelerator, benchmark: Benchmark) -> tuple[Parallel, str]:
        if row.tensor or row.pipeline or row.context:
            cut = max(1, row.tensor) * max(1, row.pipeline) * max(1, row.context)
            data = max(1, row.accelerators // cut)
            return Parallel(
                data=data,
                tensor=max(1, row.tensor),
                pipeline=max(1, row.pipeline),
                context=max(1, row.context),
            ), ""
        weights = WEIGHT_BYTES["fp8"] if benchmark.kind == "lora" else WEIGHT_BYTES["bf16"]
        fabric = fabric_of(sheet, self.latencies)
        try:
            best = layouts(
                benchmark.work, sheet, fabric, accelerators=row.accelerators, batch=row.batch, form=benchmark.form,
                weight_bytes=weights, most=400,
            )  # fmt: skip
            small = benchmark.work.params * (weights + 4.0) < 0.6 * best[0].memory.room
            whole = [layout for layout in best if layout.parallel.pipeline == 1] if small else []
            return (whole or best)[0].parallel, ""  # nobody pipelines what fits one accelerator
        except MissingFigure:
            raise
        except BaseloadError as error:
            data = min(row.accelerators, row.batch)
            cut = max(1, row.accelerators // data)
            return Parallel(data=data, context=cut), f"layout guessed: {error.message}"

    def _traits(self, row: Row, name: str, sheet: Accelerator, benchmark: Benchmark) -> Traits:
        traits: list[tuple[str, str]] = [
            ("kind", benchmark.kind),
            ("benchmark", benchmark.name),
            ("vendor", f"{sheet.vendor}/{benchmark.kind}"),
            ("silicon", f"{sheet.vendor} {sheet.bf16_tflops or 0:g}"),
            ("accelerator", name),
            ("pair", f"{name}/{benchmark.name}"),
        ]
        if row.release:
            traits.append(("release", f"{row.release}/{benchmark.kind}"))
        if row.submitter:
            traits += [("site", row.submitter), ("site_kind", f"{row.submitter}/{benchmark.kind}")]
        if benchmark.missing or name not in self.catalogue.entries:
            traits.append(("uncounted", benchmark.name if benchmark.missing else name))
        return tuple(traits)


def shipped() -> Fitted:
    """The form at the values shipped with the package."""
    corrections, basis = read_shipped((files("baseload.limits.catalogue") / "training.toml").read_bytes())
    return unfitted(FORM, shipped=corrections, basis=basis)


def added(row: Row, answer: Answer) -> dict[str, Any]:
    """The cells a row gets. Times are seconds, the throughput samples a second."""
    step = answer.step_s
    steps = row.samples / row.batch if row.batch else 0.0
    layout = answer.layout
    return {
        "step_time": "" if step is None else f"{step:.6g}",
        "throughput": "" if step is None else f"{row.batch / step:.6g}",
        "train_time_min": "" if step is None or not steps else f"{steps * step / 60.0:.5g}",
        "basis": answer.basis,
        "expected_error": "" if answer.expected_error is None else f"{answer.expected_error:.3f}",
        "layout": "" if layout is None else words(layout),
        "note": answer.note,
    }


def words(layout: Parallel) -> str:
    """A layout in short: data 8, tensor 4, pipeline 8."""
    parts = [("data", layout.data), ("tensor", layout.tensor), ("pipeline", layout.pipeline)]
    parts += [("context", layout.context), ("expert", layout.expert)]
    return ", ".join(f"{name} {n}" for name, n in parts if n > 1) or "one"
