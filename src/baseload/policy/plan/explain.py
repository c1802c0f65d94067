"""Why a choice is what it is: what binds it, and what relaxing each thing by a quarter would bring.

Hardware is relaxed in the catalogue (memory, bandwidth, compute, links, each alone), levels in the specification; the
option is judged again, and its dollars per token compared at the same price per accelerator.
"""

from dataclasses import dataclass

import msgspec

from baseload.limits.catalogue.accelerators import Catalogue
from baseload.limits.serving.points import Layout
from baseload.limits.serving.predict import Predictor
from baseload.limits.shapes import ModelShape
from baseload.policy.plan.answer import Explanation, Gain
from baseload.policy.plan.candidates import Candidate, Unit, replicas_for, unit_for
from baseload.policy.plan.options import STEP_TOKENS, Option, cost_of, judge_layout, recurved
from baseload.policy.plan.serve import cached_tokens
from baseload.policy.plan.spec import Levels, Objective, peak_of

MORE = 1.25
WORTH = 0.01  # a smaller change is none
_FIGURES = {
    "memory": ("memory_gb",),
    "bandwidth": ("memory_gb_per_s",),
    "compute": ("bf16_tflops", "fp8_tflops", "fp4_tflops", "int8_tops"),
    "network": ("scale_up_gb_per_s", "scale_out_gbit_per_s"),
}


@dataclass(frozen=True, slots=True)
class _Change:
    what: str
    rate: float
    gpus: int


def explain(choice: Candidate, shape: ModelShape, predictor: Predictor, objective: Objective) -> Explanation:
    """What binds the choice, and what would relax it."""
    unit, model = choice.unit, choice.model
    base = unit.gpus * unit.share / unit.rate  # at the formula's greatest load, as all it is compared with
    gains: list[Gain] = []
    for what in _FIGURES:
        changed = _with_hardware(choice, shape, predictor, what, objective)
        share = changed.gpus / changed.rate / base - 1.0 if changed else 0.0
        if share < -WORTH:
            gains.append(Gain(what, f"+{MORE - 1:.0%} {what}", _tokens_more(share), share))
    for what, levels in _levels(model.levels):
        again = unit_for(
            unit.option, model.traffic, levels, network_ms=choice.place.site.network_ms, objective=objective
        )
        share = again.gpus / again.rate / base - 1.0 if again else 0.0
        if share < -WORTH:
            gains.append(Gain(what, f"{what} +{MORE - 1:.0%}", _tokens_more(share), share))
    gains += _prefix(choice, base, objective)
    gains.sort(key=lambda gain: gain.usd_share)
    gains.append(Gain("money", "price -20%", "20.0% fewer dollars for the same work", -0.2))
    needed = replicas_for(peak_of(model.traffic), unit.rate, 0)
    used = peak_of(model.traffic) / unit.rate / needed
    hardware = next((g.what for g in gains if g.what in _FIGURES), "")
    binds = "granularity" if needed == 1 and used < 0.7 else hardware or unit.binds
    why = _why(unit, binds, hardware, used, needed) + _cut(choice, shape, predictor)
    return Explanation(binds, why, tuple(gains))


def _cut(choice: Candidate, shape: ModelShape, predictor: Predictor) -> str:
    """What it brings that several groups share each context."""
    option, model = choice.unit.option, choice.model
    if option.cp == 1:
        return ""
    group = Layout(gpus=option.gpus // option.cp, dp=option.dp, ep=option.ep, pp=option.pp)
    whole = cost_of(model, shape, option.accelerator, _asked(option), group, predictor)
    cached = cached_tokens(model.traffic)
    took, uncut = (c.prefill_ns(model.traffic.prompt_tokens - cached, cached) / 1e9 for c in (option.cost, whole))
    return f" Cut over {option.cp} groups, a mean prompt computes for {took:.2g} s instead of {uncut:.2g} s."


def _prefix(choice: Candidate, base: float, objective: Objective) -> list[Gain]:
    """What the prefix cache brings, and what more of its hits would."""
    model, option = choice.model, choice.unit.option
    hits = model.traffic.shared_prefix
    found = []
    for share in (0.0, min(0.95, hits * MORE)) if hits else ():
        traffic = msgspec.structs.replace(model.traffic, shared_prefix=share)
        other = recurved(option, traffic, model.levels)
        again = other and unit_for(
            other, traffic, model.levels, network_ms=choice.place.site.network_ms, objective=objective
        )
        if not again:
            continue
        change = again.gpus / again.rate / base - 1.0
        words = _tokens_more(change) if change < 0 else f"{change:.1%} more dollars a token"
        if abs(change) >= WORTH:
            found.append(Gain("prefix hits", f"prefix hits {hits:.0%} → {share:.0%} of a prompt", words, change))
    return found


def _with_hardware(
    choice: Candidate, shape: ModelShape, predictor: Predictor, what: str, objective: Objective
) -> _Change | None:
    option, model = choice.unit.option, choice.model
    chip = choice.place.chip
    better = msgspec.structs.replace(
        chip, **{f: getattr(chip, f) * MORE for f in _FIGURES[what] if getattr(chip, f) is not None}
    )
    again = Predictor(
        catalogue=Catalogue({**predictor.catalogue.entries, option.accelerator: better}),
        models=predictor.models,
        defaults=predictor.defaults,
        fitted=predictor.fitted,
    )
    best: Unit | None = None
    for other in judge_layout(
        model,
        shape,
        option.accelerator,
        _asked(option),
        option.parallel,
        again,
        option.curve.step_tokens or STEP_TOKENS,
    ):
        if other.mode == option.mode:
            best = unit_for(
                other, model.traffic, model.levels, network_ms=choice.place.site.network_ms, objective=objective
            )
    return None if best is None else _Change(what, best.rate, best.gpus)


def _asked(option: Option) -> str:
    """The precision as asked of the judge: a mixed recipe is the model's own."""
    return "" if "+" in option.precision else option.precision


def _levels(levels: Levels) -> list[tuple[str, Levels]]:
    found = []
    if levels.ttft_ms:
        found.append(("TTFT level", msgspec.structs.replace(levels, ttft_ms=levels.ttft_ms * MORE)))
    if levels.tpot_ms:
        found.append(("TPOT level", msgspec.structs.replace(levels, tpot_ms=levels.tpot_ms * MORE)))
    return found


def _tokens_more(share: float) -> str:
    return f"{-share:.1%} fewer dollars a token ({1 / (1 + share) - 1:.1%} more tokens of each accelerator)"


def _why(unit: Unit, binds: str, hardware: str, used: float, needed: int) -> str:
    stops = {
        "ttft": "the TTFT level is reached first",
        "tpot": "the TPOT level is reached first",
        "memory": "the memory for the cache is full first",
        "rows": "the batch reaches its bound first",
        "prompts": "prompts saturate it first",
        "latency": "more load would make answers notably longer",
    }[unit.binds]
    text = f"A replica carries {unit.rate:.3g} requests/s: {stops}"
    text += f"; of the hardware, {hardware} matters most." if hardware else "."
    if binds == "granularity":
        text += f" But one is enough: the peak uses {used:.0%} of it, so the smallest unit sets the price."
    elif needed > 1:
        text += f" {needed} are needed at the peak, {used:.0%} used."
    return text
