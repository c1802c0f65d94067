"""Predict serving points: from the sheet and the shipped values alone, or calibrated by a few measured ones.

Every row is answered. TPOT is the one whose mean relative error is least: of an error spread by s in logarithms, that
is exp(-s²) times the median, since to say too much costs more than to say too little. Each answer says what it rests
on (`basis`), what is odd about it (`note`), and by how much it is expected to miss.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from baseload.limits.catalogue.accelerators import Catalogue, read_catalogue
from baseload.limits.catalogue.models import Models
from baseload.limits.serving.defaults import Defaults, read_defaults
from baseload.limits.serving.features import Floats, features_of, weights_of
from baseload.limits.serving.fit import Fitted, fit
from baseload.limits.serving.hidden import (
    PACE,
    SPECULATES,
    UNCERTAIN,
    Beliefs,
    Guess,
    guesses,
    least_error,
    likeliest,
    may_speculate,
    measured_s,
    responsibilities,
)
from baseload.limits.serving.points import Point
from baseload.limits.serving.residual import Residual, learn
from baseload.limits.serving.stand_in import StandIns
from baseload.limits.serving.step import INDEX, bounded, times_of
from baseload.limits.serving.traits import traits_of
from baseload.limits.shapes import ModelShape

UNMEASURED, UNCOUNTED, FOREIGN = 0.015, 0.05, 0.08
"""Variances added for accelerators and engines never calibrated, and for unknown worker counts, as found on the
development half with each accelerator left out in turn; and for a stand-in, assumed: some 30 % more."""
SPECULATING = 1.45
"""How much shorter TPOT was where builds of one engine were seen to differ by speculative decoding: 1.3–1.6 times."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer. Expected errors are relative; `tpot_if_speculating_ms` is 0 where that is no question."""

    tpot_ms: float
    ttft_ms: float
    basis: str
    tpot_expected_error: float
    ttft_expected_error: float
    tpot_if_speculating_ms: float
    note: str


class Predictor:
    """Answers points, after `calibrate` with some measured ones or without."""

    def __init__(
        self,
        *,
        catalogue: Catalogue | None = None,
        models: Models | None = None,
        defaults: Defaults | None = None,
        fitted: Fitted | None = None,
    ) -> None:
        self.catalogue, self.models = catalogue or read_catalogue(), models or Models()
        self.chips = StandIns(self.catalogue)
        self.defaults = defaults or read_defaults()
        self.fitted = fitted or self.defaults.fitted()
        self._known: Counter[tuple[str, str, str]] = Counter()
        self._builds = {trait for trait, _ in self.fitted.corrections}
        self._beliefs = Beliefs()
        self._tpot: Residual = learn((), np.zeros(0), self.defaults.tpot)
        self._ttft: Residual = learn((), np.zeros(0), self.defaults.ttft)

    def calibrate(self, points: Sequence[Point]) -> "Predictor":
        """A predictor that has also seen these measured points (rows without times are passed over)."""
        seen = [p for p in points if p.tpot_ms > 0]
        features, traits = features_of(seen, self.chips, self.models), self._traits(seen)
        tpot_s, ttft_s = measured_s(seen, self.models)
        fitted = self.fitted
        if seen:
            fitted = fit(features, traits, tpot_s, ttft_s, start=self.fitted, only_groups=True, rounds=10)
        after = Predictor(catalogue=self.catalogue, models=self.models, defaults=self.defaults, fitted=fitted)
        after._known = Counter((p.system, p.engine, p.mode) for p in seen)
        errors, after._beliefs = after.errors_of(seen)
        after._tpot = learn(seen, errors, self.defaults.tpot)
        both = [i for i, p in enumerate(seen) if p.ttft_ms > 0]
        first = times_of(features, after._usual_theta(seen)).ttft_s
        after._ttft = learn([seen[i] for i in both], np.log(ttft_s[both] / first[both]), self.defaults.ttft)
        return after

    def errors_of(self, points: Sequence[Point]) -> tuple[Floats, Beliefs]:
        """Logarithms of measured over computed TPOT before any residual, by the guess that explains each point best,
        and which guesses those are."""
        errors, told = np.zeros(len(points)), []
        for i, (said, tpot) in enumerate(self._guessed(points)):
            each = np.log(points[i].tpot_ms / 1e3 / tpot)
            shares = responsibilities(each, np.array([g.weight for g in said]))
            errors[i] = shares @ each
            if len(said) > 1:
                told.append((points[i], said, shares))
        return errors, Beliefs(told)

    def _guessed(self, points: Sequence[Point]) -> list[tuple[tuple[Guess, ...], Floats]]:
        """What each point may have been, and its TPOT in seconds then."""
        if not points:
            return []
        said = [
            guesses(p, self.chips.find(p.system), shape, weights_of(p, shape))
            for p, shape in ((p, self.models.find(p.model)[0]) for p in points)
        ]
        flat = [g.point for of in said for g in of]
        tpot = times_of(features_of(flat, self.chips, self.models), self.fitted.theta(self._traits(flat))).tpot_s
        tpot = tpot / np.array([PACE if g.speculates else 1.0 for of in said for g in of])
        ends = np.cumsum([len(of) for of in said])
        return list(zip(said, np.split(tpot, ends[:-1]), strict=True))

    def _usual_theta(self, points: Sequence[Point]) -> Floats:
        """Logarithms of PARAMETERS per point, for the first token: where rows may speculate, at a usual pace, as how
        long an answer takes is how many prompts wait."""
        theta = self.fitted.theta(self._traits(points))
        may = [may_speculate(p, self.models.find(p.model)[0]) for p in points]
        told = [bool(p.speculates) for p in points]
        theta[:, INDEX["pace"]] += np.where(told, 1.0, np.where(may, SPECULATES, 0.0)) * np.log(PACE)
        return theta

    def _tpot_s(self, points: Sequence[Point], spread: Floats) -> tuple[Floats, Floats]:
        """(the answer of least expected relative error, the same if it speculates), in seconds."""
        answer, other = np.zeros(len(points)), np.zeros(len(points))
        for i, (said, tpot) in enumerate(self._guessed(points)):
            if len(said) == 1:
                answer[i] = tpot[0] * np.exp(-(spread[i] ** 2))
                other[i] = answer[i] / SPECULATING
                continue
            own = max(spread[i] ** 2 - UNCOUNTED, UNCERTAIN**2) ** 0.5
            weights = self._beliefs.weights(points[i], said)
            answer[i] = least_error(tpot, weights, own)
            speculating = np.array([g.speculates for g in said])
            if speculating.any():
                other[i] = least_error(tpot[speculating], weights[speculating], own)
        return answer, other

    def predict(self, points: Sequence[Point]) -> list[Prediction]:
        """One answer a point, in order. What stands in for blank figures is told in `basis` and `note`."""
        if not points:
            return []
        features = features_of(points, self.chips, self.models)
        times = times_of(features, self._usual_theta(points))
        more, spread = self._tpot.correct(points)
        more_first, spread_first = self._ttft.correct(points)
        doubt = self._doubt(points)
        spread, spread_first = np.sqrt(spread**2 + doubt), np.sqrt(spread_first**2 + doubt)
        moved = 1e3 * np.exp(np.clip(more, -1.5, 1.5))
        tpot_s, speculating_s = self._tpot_s(points, spread)
        tpot_ms, speculating_ms = tpot_s * moved, speculating_s * moved
        ttft_ms = 1e3 * times.ttft_s * np.exp(np.clip(more_first, -3.0, 3.0))
        answers = []
        for i, point in enumerate(points):
            unknown_build = f"version={point.engine}/{point.version},family={point.family}" not in self._builds
            drafts = self.models.find(point.model)[0].draft_layers > 0
            two = point.speculates is None and unknown_build and drafts
            answers.append(
                Prediction(
                    tpot_ms=float(tpot_ms[i]),
                    ttft_ms=float(ttft_ms[i]),
                    basis=self.basis_of(point),
                    tpot_expected_error=_mean_error(spread[i], self.defaults.tpot.noise),
                    ttft_expected_error=_mean_error(spread_first[i], self.defaults.ttft.noise),
                    tpot_if_speculating_ms=float(speculating_ms[i]) if two else 0.0,
                    note=self._note(point, fits=bool(features["fits"][i])),
                )
            )
        return answers

    def _traits(self, points: Sequence[Point]) -> list[tuple[tuple[str, tuple[str, ...]], ...]]:
        return [traits_of(self._named(point), self.models.find(point.model)[0]) for point in points]

    def _doubt(self, points: Sequence[Point]) -> Floats:
        """Variance of the log error besides the residual's: of groups never calibrated, of workers nobody counted, of
        silicon and models that stand in for what the catalogue lacks."""
        fresh = [UNMEASURED if not self._known[(p.system, p.engine, p.mode)] else 0.0 for p in points]
        hidden = [UNCOUNTED if p.prefill and not p.decode.workers_known else 0.0 for p in points]
        foreign = [FOREIGN if self.chips.note(p.system) else 0.0 for p in points]
        guessed = [FOREIGN if self.models.find(p.model)[1] != "config" else 0.0 for p in points]
        doubt: Floats = np.array(fresh) + np.array(hidden) + np.array(foreign) + np.array(guessed)
        return doubt

    def _named(self, point: Point) -> Point:
        """With the catalogue's own word for the accelerator, which traits are known by."""
        identifier = self.chips.identifier(point.system)
        return point if identifier == point.system else msgspec.structs.replace(point, system=identifier)

    def theta_of(self, point: Point, shape: ModelShape) -> Floats:
        """Logarithms of PARAMETERS for one deployment."""
        theta: Floats = bounded(self.fitted.theta([traits_of(self._named(point), shape)]))[0]
        return theta

    def basis_of(self, point: Point) -> str:
        """What an answer for this point rests on."""
        count = self._known[(point.system, point.engine, point.mode)]
        if count:
            return f"calibrated: {count} points of {point.system}/{point.engine}/{point.mode}"
        blank = self.chips.note(point.system)
        if blank:
            return f"fallback: {blank}"
        identifier, other = self.chips.identifier(point.system), sum(self._known.values())
        shipped = f"system={identifier},engine={point.engine}" in self._builds
        base = f"shipped values for {identifier}/{point.engine}" if shipped else "sheet only"
        return f"{base}; calibrated elsewhere: {other} points" if other else base

    def _note(self, point: Point, *, fits: bool) -> str:
        notes = [note for note in (point.note, self.chips.note(point.system)) if note]
        if not fits:
            shape = self.models.find(point.model)[0]
            wide = likeliest(point, self.chips.find(point.system), shape, weights_of(point, shape)).decode.gpus
            notes.append(f"weights exceed the memory of the accelerators stated: computed on {wide}")
        if self.models.find(point.model)[1] != "config":
            notes.append("model shape guessed from its name: give its config.json")
        if point.prefill and not (point.decode.workers_known and point.prefill.workers_known):
            notes.append("worker counts not stated")
        return "; ".join(notes)


def _mean_error(spread: float, noise: float) -> float:
    """The mean absolute error of a log-normal guess with this spread, with the noise of measuring."""
    return float(np.sqrt(2.0 / np.pi) * np.sqrt(spread * spread + noise))
