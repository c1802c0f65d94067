"""Ways to serve one model on one kind of accelerator: weight format × layout × mode, each with its load curve."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.quantization import format_of
from baseload.limits.serving.features import MEMORY_MOST, weights_of
from baseload.limits.serving.points import Layout
from baseload.limits.serving.points import Point as ServingPoint
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.replica import StepCost, step_cost
from baseload.limits.shapes import ModelShape
from baseload.policy.plan.pipeline import MOST_STAGES, pipelined
from baseload.policy.plan.serve import Curve, aggregated, cached_tokens, context_of, decode_pool, prefill_pool
from baseload.policy.plan.spec import Levels, ServedModel, Traffic

STEP_TOKENS = 2048  # the budget of a step that candidates are compared at
OTHER_STEP_TOKENS = (512, 8192)  # tried for those that are good
LONG_PROMPT = 8192  # tokens computed of a prompt from which on it may be cut over groups that share its context
CUTS = (2, 4, 8)  # into how many parts


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve a model. Disaggregated, prefill and decode workers share the layout."""

    accelerator: str  # catalogue identifier
    precision: str
    tp: int
    dp: int
    ep: int
    pp: int
    mode: str
    cost: StepCost
    curve: Curve
    prefill: Curve | None  # its workers', where disaggregated
    transfer_ms: float
    cp: int = 1  # groups that share each context

    @property
    def gpus(self) -> int:
        """Accelerators of one worker."""
        return self.tp * self.dp * self.pp * self.cp

    @property
    def parallel(self) -> Layout:
        """The layout, as the limits take it."""
        return Layout(gpus=self.gpus, dp=self.dp, ep=self.ep, pp=self.pp, cp=self.cp)

    @property
    def layout(self) -> str:
        """In words people use."""
        parts = [("tp", self.tp), ("dp", self.dp), ("ep", self.ep), ("pp", self.pp), ("cp", self.cp)]
        return " ".join(f"{name}{n}" for name, n in parts if n > 1) or "tp1"


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one accelerator for one model: options, or why there are none."""

    options: tuple[Option, ...]
    missing: tuple[str, ...] = ()  # figures the catalogue lacks
    why_not: str = ""  # all figures are known, and yet nothing works


def judge(
    model: ServedModel, shape: ModelShape, accelerator: str, predictor: Predictor, *, step_tokens: int = STEP_TOKENS
) -> Judged:
    """All options of an accelerator for a model."""
    chip = predictor.catalogue.find(accelerator)
    options: list[Option] = []
    missing: dict[str, None] = {}
    too_big = 0.0
    for precision in precisions_of(model, shape, chip):
        for layout in layouts_of(model, shape, chip):
            try:
                short = _short_of(model, shape, chip, precision, layout)
                if short:
                    too_big = min(too_big or short, short)
                    continue
                options += judge_layout(model, shape, accelerator, precision, layout, predictor, step_tokens)
            except MissingFigure as error:
                missing[error.figure] = None
    if options:
        return Judged(tuple(options))
    if missing:
        return Judged((), tuple(missing))
    if too_big:
        return Judged((), (), f"weights need {too_big:.1f} times the memory of its largest replica")
    return Judged((), (), "no room for the cache of one request beside the weights")


def precisions_of(model: ServedModel, shape: ModelShape, chip: Accelerator) -> tuple[str, ...]:
    """Weight formats to try: those the model allows; unless said, its own and fp8 where the chip multiplies it."""
    if model.precisions:
        unknown = [p for p in model.precisions if format_of(p) is None]
        if unknown:
            raise DataError(f"Model {model.name!r}: {unknown[0]!r} is no weight format.", hint="See docs/plan.md.")
        return tuple(dict.fromkeys(format_of(p) or p for p in model.precisions))
    q = shape.quantization
    own = "" if q.dense != q.experts else q.dense  # "" keeps a mixed recipe as it is
    formats = [own]
    if chip.fp8_tflops is not None and "bf16" in (q.dense, q.experts) and own:
        formats.append("fp8")
    return tuple(formats)


def layouts_of(model: ServedModel, shape: ModelShape, chip: Accelerator) -> Iterator[Layout]:
    """Layouts to try: powers of two, tensor-parallel inside the fast domain, pipelined beyond it; for long prompts
    with a level on the first token also several such groups that share each context."""
    domain = max(1, chip.scale_up_domain or 1)
    has_links = chip.scale_up_gb_per_s is not None or chip.scale_out_gbit_per_s is not None
    gpus = 1
    while gpus <= model.max_accelerators:
        inside = min(gpus, _power_below(domain))
        if gpus // inside > MOST_STAGES:
            return
        if gpus == 1 or has_links or inside == gpus:
            yield Layout(gpus=gpus, pp=gpus // inside)
        if shape.moe_layers and gpus > 1 and inside == gpus:
            yield Layout(gpus=gpus, ep=gpus)
            if any(m.kind == "mla" for m in shape.mixers):
                yield Layout(gpus=gpus, dp=gpus, ep=gpus)
        if inside == gpus and has_links and is_long(model):
            ep = gpus if shape.moe_layers else 1
            for cp in CUTS:
                if gpus * cp <= model.max_accelerators:
                    yield Layout(gpus=gpus * cp, ep=ep, cp=cp)
        gpus *= 2


def is_long(model: ServedModel) -> bool:
    """Whether computing a prompt may be what keeps the first token from its level."""
    return model.levels.ttft_ms > 0 and model.traffic.prompt_tokens - cached_tokens(model.traffic) >= LONG_PROMPT


def _power_below(count: int) -> int:
    power = 1
    while power * 2 <= count:
        power *= 2
    return power


def _short_of(model: ServedModel, shape: ModelShape, chip: Accelerator, precision: str, layout: Layout) -> float:
    """How many times the memory the weights need, where that is too much; else 0."""
    q = weights_of(_point(model, shape, chip.name, precision, layout), shape)
    group = layout.gpus / layout.cp  # each holds the weights whole
    need = shape.weight_bytes(q) / group
    need += shape.mixer_params * q.attention_bytes * (layout.dp - 1) / group
    have = chip.need("memory_gb") * 1e9 * MEMORY_MOST
    return need / have if need > have else 0.0


def _point(model: ServedModel, shape: ModelShape, accelerator: str, precision: str, layout: Layout) -> ServingPoint:
    return ServingPoint(
        line=0, id="", engine=model.engine, version=model.engine_version, model=shape.name, system=accelerator,
        dense_format=precision, expert_format=precision, isl=model.traffic.prompt_tokens,
        osl=model.traffic.output_tokens, concurrency=1.0, decode=layout,
    )  # fmt: skip


def judge_layout(
    model: ServedModel, shape: ModelShape, accelerator: str, precision: str, layout: Layout, predictor: Predictor,
    step_tokens: int,
) -> list[Option]:  # fmt: skip
    """The options (one a mode) of one weight format and layout; MissingFigure where the catalogue lacks a figure."""
    traffic, levels = model.traffic, model.levels
    tp = layout.gpus // layout.dp // layout.pp // layout.cp
    cost = cost_of(model, shape, accelerator, precision, layout, predictor)
    q = weights_of(_point(model, shape, accelerator, precision, layout), shape)
    said = precision or (q.dense if q.dense == q.experts else f"{q.dense}+{q.experts} experts")
    found = []
    if "aggregated" in model.modes:
        curve = aggregated(cost, traffic, levels, step_tokens=step_tokens)
        if curve is not None:
            found.append(
                Option(
                    accelerator, said, tp, layout.dp, layout.ep, layout.pp, "aggregated", cost, curve, None, 0.0,
                    layout.cp,
                )
            )  # fmt: skip
    if "disaggregated" in model.modes:
        try:
            transfer_s = _transfer_s(
                shape, cost, traffic.prompt_tokens, layout, predictor.catalogue.find(accelerator)
            )
        except MissingFigure:
            return found
        curve = decode_pool(cost, traffic, levels)
        pool = prefill_pool(cost, traffic, levels, transfer_s=transfer_s)
        if curve is not None and pool is not None:
            found.append(
                Option(
                    accelerator, said, tp, layout.dp, layout.ep, layout.pp, "disaggregated", cost, curve, pool,
                    1e3 * transfer_s, layout.cp,
                )
            )  # fmt: skip
    return found


def cost_of(
    model: ServedModel, shape: ModelShape, accelerator: str, precision: str, layout: Layout, predictor: Predictor
) -> StepCost:
    """Step costs of one replica for the model's traffic."""

    def of(stages: int) -> StepCost:
        return step_cost(
            shape,
            accelerator,
            engine=model.engine,
            version=model.engine_version,
            tp=layout.gpus // layout.dp // layout.pp // layout.cp,
            dp=layout.dp,
            ep=layout.ep,
            pp=stages,
            cp=layout.cp,
            weights=precision,
            typical_tokens=round(context_of(model.traffic)),
            output_tokens=model.traffic.output_tokens,
            max_rows=0,
            predictor=predictor,
        )

    whole = of(layout.pp)
    return whole if layout.pp == 1 else pipelined(whole, of(1), layout.pp)


def _transfer_s(shape: ModelShape, cost: StepCost, tokens: int, layout: Layout, chip: Accelerator) -> float:
    """Seconds to send a prompt's cache from one worker to another, over all its accelerators' network links."""
    link = chip.need("scale_out_gbit_per_s") / 8.0 * 1e9 * layout.gpus
    return shape.kv_bytes(tokens, cost.parts.counts.kv_element_bytes) / link


def recurved(option: Option, traffic: Traffic, levels: Levels) -> Option | None:
    """The same layout under other traffic or levels; None where it cannot serve at all."""
    if option.prefill is None:
        curve = aggregated(option.cost, traffic, levels, step_tokens=option.curve.step_tokens)
        return None if curve is None else replace(option, curve=curve)
    decode = decode_pool(option.cost, traffic, levels)
    pool = prefill_pool(option.cost, traffic, levels, transfer_s=option.transfer_ms / 1e3)
    return None if decode is None or pool is None else replace(option, curve=decode, prefill=pool)


def refined(option: Option, model: ServedModel) -> Sequence[Option]:
    """The same with other step budgets (aggregated only), itself first."""
    if option.mode != "aggregated":
        return (option,)
    others = [option]
    for step_tokens in OTHER_STEP_TOKENS:
        curve = aggregated(option.cost, model.traffic, model.levels, step_tokens=step_tokens)
        if curve is not None:
            others.append(replace(option, curve=curve))
    return others
