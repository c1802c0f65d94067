"""From a specification to an answer: judge, allocate, rank, explain, and say how firmly it stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from baseload.limits.catalogue.accelerators import InstancePrice
from baseload.limits.money import HOURS_PER_MONTH
from baseload.limits.serving.points import Point as ServingPoint
from baseload.limits.serving.predict import Predictor
from baseload.limits.shapes import ModelShape
from baseload.policy.plan.answer import (
    Basis,
    Check,
    Choice,
    Conflict,
    Gain,
    ModelAnswer,
    NotJudged,
    PlanReport,
    Sensitivity,
    Totals,
    TrainingAnswer,
)
from baseload.policy.plan.candidates import Candidate, better, pareto
from baseload.policy.plan.capacity import token_capacity
from baseload.policy.plan.conflicts import Limit, Way, conflict, limits_of
from baseload.policy.plan.day import day_by_hour
from baseload.policy.plan.explain import explain
from baseload.policy.plan.offers import NO_LIMIT, power_basis
from baseload.policy.plan.problem import Extra, Problem, Solved, allowed, has_power_limit, scaled_traffic
from baseload.policy.plan.spec import Levels, PlanSpec, ServedModel
from baseload.policy.plan.worth import pays_back

Progress = Callable[[str], None]
NEARLY = 0.9  # a limit used so far is tight


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What is left of an allocation after twin runs: one that they confirm within all limits, or none."""

    solved: Solved | None
    checks: dict[str, list[Check]]  # by model, in the order of `solved.chosen`


Confirm = Callable[[Problem, PlanSpec, Solved], Confirmed]


@dataclass(frozen=True, slots=True)
class Found:
    """The report, and the allocation behind it."""

    report: PlanReport
    solved: Solved | None
    problem: Problem


def search(
    spec: PlanSpec,
    *,
    predictor: Predictor,
    prices: Sequence[InstancePrice],
    shapes: dict[str, ModelShape],
    extras: dict[str, list[Extra]] | None = None,
    confirm: Confirm | None = None,
    progress: Progress = lambda _: None,
) -> Found:
    """Answer a checked specification. `shapes` by model name, `extras` the ways to do each training job.

    `confirm` runs an allocation in the twin and corrects it (`twin.plan_verify`); what is recommended, its totals,
    its ranking and its sensitivity then rest on what it left. None: the formula's answer, unchecked.
    """
    problem = Problem(predictor, prices, shapes, extras=extras or {})
    progress("judging accelerators")
    problem.judge_all(spec)
    progress("allocating")
    by_formula = problem.solve(spec)
    solved, checks = by_formula, {}
    if by_formula is not None and confirm is not None:
        confirmed = confirm(problem, spec, by_formula)
        solved, checks = confirmed.solved, confirmed.checks
    left_out = _not_judged(spec, problem)
    if solved is None:
        progress("finding what conflicts")
        limits, ways = conflict(problem, spec)
        return Found(_infeasible(spec, by_formula, limits, ways, left_out), None, problem)
    progress("explaining")
    report = PlanReport(
        name=spec.name,
        objective=spec.objective,
        feasible=True,
        totals=totals_of(spec, solved),
        answers=tuple(_answer(spec, model, solved, problem, checks.get(model.name, [])) for model in spec.models),
        training=tuple(training_answers(spec, solved, problem)),
        sensitivity=tuple(_sensitivity(spec, solved, problem)),
        conflict=None,
        not_judged=left_out,
        day=day_by_hour(spec, solved),
        tight=tuple(_tight(spec, solved, problem)),
        checked=confirm is not None,
    )
    return Found(report, solved, problem)


def chosen_of(candidate: Candidate, predictor: Predictor) -> Choice:
    """The candidate as plain values, with what its replicas carry in tokens."""
    model, option = candidate.model, candidate.unit.option
    prompts, answers = token_capacity(option, model.traffic, model.levels, network_ms=candidate.place.site.network_ms)
    share = candidate.unit.share
    return replace(
        choice_of(candidate, predictor), prompt_tokens_per_s=share * prompts, output_tokens_per_s=share * answers
    )


def choice_of(candidate: Candidate, predictor: Predictor) -> Choice:
    """The candidate as plain values."""
    place, unit, option = candidate.place, candidate.unit, candidate.unit.option
    return Choice(
        site=place.site.name,
        kind=place.site.kind,
        tier=place.tier,
        accelerator=option.accelerator,
        mode=option.mode,
        precision=option.precision,
        layout=option.layout,
        tp=option.tp,
        dp=option.dp,
        ep=option.ep,
        pp=option.pp,
        cp=option.cp,
        replicas=candidate.replicas,
        mean_replicas=candidate.mean_replicas,
        prefill_workers=unit.prefill_workers,
        decode_workers=unit.decode_workers,
        accelerators=candidate.accelerators,
        max_seqs=unit.decode.slots,
        max_step_tokens=candidate.step_tokens,
        requests_per_s=unit.rate,
        used=min(1.0, candidate.load.rate * unit.decode_workers / unit.rate),
        ttft_ms=candidate.ttft_ms,
        tpot_ms=candidate.tpot_ms,
        answer_ms=candidate.answer_ms,
        usd_per_hour=candidate.usd_per_hour,
        usd_per_month=candidate.usd_per_month,
        usd_per_mtok=candidate.usd_per_mtok,
        tokens_per_joule=candidate.tokens_per_joule,
        mean_kw=candidate.mean_w / 1e3,
        peak_kw=candidate.peak_w / 1e3,
        kg_co2_per_month=candidate.kg_co2_per_month,
        binds=unit.binds,
        basis=_basis(candidate, predictor),
        share_of_formula=unit.share,
    )


def totals_of(spec: PlanSpec, solved: Solved) -> Totals:
    """Sums over all models and jobs. Dollars an hour and a month are serving's; a job is paid for once."""
    everyone = [c for many in solved.chosen.values() for c in many]
    jobs = list(solved.jobs.values())
    known = {site.name: site.gco2_per_kwh is not None for site in spec.sites}
    told = all(known[c.place.site.name] for c in everyone) and all(known[j.column.site] for j in jobs)
    carbon = sum(c.kg_co2_per_month or 0.0 for c in everyone)
    carbon += sum(j.column.kg_per_hour for j in jobs) * HOURS_PER_MONTH
    serving = sum(c.usd_per_hour for c in everyone)
    return Totals(
        usd_per_hour=serving,
        usd_per_month=serving * HOURS_PER_MONTH,
        training_usd=sum(j.answer.usd for j in jobs if isinstance(j.answer, TrainingAnswer)),
        accelerators=sum(c.accelerators for c in everyone) + sum(j.column.gpus for j in jobs),
        mean_mw=solved.mean_w / 1e6,
        peak_mw=solved.peak_w / 1e6,
        tonnes_co2_per_month=carbon / 1e3 if told else None,
        tokens_per_s=sum(c.tokens_per_s for c in everyone),
    )


def describe_levels(levels: Levels) -> str:
    """In words."""
    parts = []
    if levels.ttft_ms:
        parts.append(f"{levels.ttft_of} TTFT ≤ {levels.ttft_ms:g} ms")
    if levels.tpot_ms:
        parts.append(f"{levels.tpot_of} TPOT ≤ {levels.tpot_ms:g} ms")
    return ", ".join(parts) or "no service level"


def _answer(
    spec: PlanSpec, model: ServedModel, solved: Solved, problem: Problem, checks: Sequence[Check]
) -> ModelAnswer:
    predictor, shape = problem.predictor, problem.shapes[model.name]
    whole = problem.candidates(spec, model)
    everyone = [
        c
        for c in whole or problem.candidates(spec, model, partial=True)
        if c.mean_w or not (has_power_limit(spec, c.place) or spec.objective == "tokens_per_joule")
    ]
    everyone.sort(key=lambda c: better(c, spec.objective))
    ranked = list({(c.place.site.name, c.place.accelerator, c.place.tier): c for c in reversed(everyone)}.values())
    ranked.sort(key=lambda c: better(c, spec.objective))
    tiers = {c.place.tier: c for c in sorted(everyone, key=lambda c: -c.usd_per_mtok)}
    chosen = solved.chosen[model.name]
    return ModelAnswer(
        model=model.name,
        shape=f"{shape.name}: {shape.params / 1e9:.1f} B parameters, {shape.active_params / 1e9:.1f} B active",
        levels=describe_levels(model.levels),
        chosen=tuple(chosen_of(c, predictor) for c in chosen),
        ranked=tuple(choice_of(c, predictor) for c in ranked[: spec.alternatives]),
        pareto=tuple(choice_of(c, predictor) for c in pareto(everyone)[:12]),
        by_tier=tuple(choice_of(c, predictor) for c in sorted(tiers.values(), key=lambda c: c.usd_per_mtok)),
        pays_back=pays_back(whole),
        cloud=tuple((c.usd_per_mtok, c.answer_ms, c.place.accelerator) for c in ranked),
        explained=explain(chosen[0], shape, predictor, spec.objective),
        checks=tuple(checks),
    )


def _basis(candidate: Candidate, predictor: Predictor) -> Basis:
    option, model = candidate.unit.option, candidate.model
    point = ServingPoint(
        line=0, id="", engine=model.engine, version=model.engine_version, model=model.model,
        system=option.accelerator, dense_format=option.precision.split("+")[0],
        expert_format=option.precision.rsplit("+", 1)[-1].split(" ")[0], isl=model.traffic.prompt_tokens,
        osl=model.traffic.output_tokens, concurrency=max(1.0, candidate.load.rows),
        decode=option.parallel,
    )  # fmt: skip
    said = predictor.predict([point])[0]
    note = option.cost.note
    if option.pp > 1:
        note = "; ".join(filter(None, [note, "pipeline modelled from one stage: no measurements"]))
    if option.cp > 1:
        note = "; ".join(filter(None, [note, "context parallel modelled: no measurements"]))
    return Basis(
        f"modelled: {option.cost.basis}",
        f"{candidate.place.basis}",
        power_basis(candidate.place) if option.cost.busy_w else "no source for the accelerator's power",
        said.tpot_expected_error,
        said.ttft_expected_error,
        note,
    )


def _not_judged(spec: PlanSpec, problem: Problem) -> tuple[NotJudged, ...]:
    """One row for each accelerator and cause; places are put together."""
    causes: dict[tuple[str, str, str], list[str]] = {}
    priced: dict[tuple[str, str], list[str]] = {}
    for site, stock, figure in problem.blanks(spec):
        priced.setdefault((stock.accelerator, site), []).append(figure.removesuffix(" price"))
    for (accelerator, site), figures in priced.items():
        tiers = "" if figures == ["capex_usd"] else "price "
        why = f"cannot be judged: {tiers}missing ({', '.join(figures)})"
        causes.setdefault(("", accelerator, why), []).append(site)
    for model in spec.models:
        for place in problem.places(spec):
            judged = problem.judged[(model.name, place.accelerator)]
            if judged.missing:
                why = f"cannot be judged: {', '.join(judged.missing)} missing"
            elif judged.why_not:
                why = judged.why_not
            elif not judged.options[0].cost.busy_w and has_power_limit(spec, place):
                why = "cannot be judged under a power limit: tdp_w missing"
            else:
                continue
            sites = causes.setdefault((model.name, place.accelerator, why), [])
            if place.site.name not in sites:
                sites.append(place.site.name)
    return tuple(NotJudged(m, a, ", ".join(sites), why) for (m, a, why), sites in causes.items())


def training_answers(spec: PlanSpec, solved: Solved | None, problem: Problem) -> list[TrainingAnswer]:
    """The way chosen for each job, with the others ranked."""
    answers = []
    for job in spec.training:
        ways = [e for e in problem.extras.get(job.name, ()) if allowed(job.residency, e.region)]
        if solved is None or job.name not in solved.jobs:
            continue
        chosen = solved.jobs[job.name].answer
        assert isinstance(chosen, TrainingAnswer)
        others = [e.answer for e in ways if isinstance(e.answer, TrainingAnswer)]
        others.sort(key=lambda a: a.usd)
        in_time = [a for a in others if not job.deadline_days or a.days <= job.deadline_days]
        others = list({(a.site, a.tier, a.accelerator): a for a in reversed(in_time)}.values())
        others.sort(key=lambda a: a.usd)
        answers.append(_with_ranked(chosen, others[: spec.alternatives]))
    return answers


def _with_ranked(chosen: TrainingAnswer, others: list[TrainingAnswer]) -> TrainingAnswer:
    fields = {name: getattr(chosen, name) for name in chosen.__struct_fields__}
    return TrainingAnswer(**{**fields, "ranked": tuple(others)})


# -- how firmly it stands -----------------------------------------------------------------------------------------


def _sensitivity(spec: PlanSpec, solved: Solved, problem: Problem) -> list[Sensitivity]:
    found = []
    for factor in (0.8, 1.2) if spec.models else ():
        again = problem.solve(scaled_traffic(spec, factor))
        found.append(_compared(f"traffic {factor - 1:+.0%}", solved, again))
    used = {c.place.accelerator: None for many in solved.chosen.values() for c in many}
    for accelerator in used:
        for factor in (0.8, 1.2):
            again = problem.solve(spec, dearer={accelerator: factor})
            dearer = _compared(f"price of {accelerator} {factor - 1:+.0%}", solved, again)
            if again is not None:
                usd = sum(_paid(c, accelerator, factor) for many in again.chosen.values() for c in many)
                usd += sum(j.column.usd_per_hour for j in again.jobs.values())
                dearer = Sensitivity(
                    dearer.what, usd / solved.usd_per_hour - 1.0 if solved.usd_per_hour else 0.0, dearer.changes
                )
            found.append(dearer)
    error = _model_error(solved, problem)
    if error:
        for slow in (1.0 - error, 1.0 + error):
            again = problem.solve(spec, slow=slow)
            found.append(_compared(f"all step times {slow - 1:+.0%} (the model's expected error)", solved, again))
    return found


def _paid(candidate: Candidate, accelerator: str, factor: float) -> float:
    return candidate.usd_per_hour * (factor if candidate.place.accelerator == accelerator else 1.0)


def _model_error(solved: Solved, problem: Problem) -> float:
    errors = [_basis(c, problem.predictor).tpot_expected_error for many in solved.chosen.values() for c in many]
    return min(0.9, round(max(errors), 2)) if errors else 0.0


def _compared(what: str, before: Solved, after: Solved | None) -> Sensitivity:
    if after is None:
        return Sensitivity(what, None, "no longer feasible within the limits")
    changes = [
        f"{name}: {_named(after.chosen[name])}"
        for name, many in before.chosen.items()
        if _kind(many) != _kind(after.chosen[name])
    ]
    share = after.usd_per_hour / before.usd_per_hour - 1.0 if before.usd_per_hour else 0.0
    return Sensitivity(what, share, "; ".join(changes))


def _kind(many: Sequence[Candidate]) -> list[tuple[str, str, str]]:
    return sorted((c.place.site.name, c.place.accelerator, c.unit.option.mode) for c in many)


def _named(many: Sequence[Candidate]) -> str:
    return " + ".join(
        f"{c.replicas} × {c.place.accelerator} {c.unit.option.layout} at {c.place.site.name}" for c in many
    )


def _named_all(solved: Solved) -> str:
    return "; ".join(f"{name}: {_named(many)}" for name, many in solved.chosen.items())


def _tight(spec: PlanSpec, solved: Solved, problem: Problem) -> list[Gain]:
    """Limits of the whole plan whose loosening by a quarter would save money."""
    found = []
    for limit in limits_of(spec):
        if limit.unit == "ms" or not limit.is_number:
            continue
        again = problem.solve(limit.change(spec, 1.25))
        share = again.usd_per_hour / solved.usd_per_hour - 1.0 if again and solved.usd_per_hour else 0.0
        if share < -0.005:
            more = f"{limit.value:g} → {limit.value * 1.25:g} {limit.unit}"
            found.append(Gain(limit.name, more, f"{-share:.1%} fewer dollars for the whole plan", share))
    return sorted(found, key=lambda gain: gain.usd_share)


def _infeasible(
    spec: PlanSpec, by_formula: Solved | None, limits: list[Limit], ways: list[Way], left_out: tuple[NotJudged, ...]
) -> PlanReport:
    if limits:
        why = "Each of these is needed for the conflict; without any one of them the others can be kept."
        if all(way.factor < 0 for way in ways):
            why = "It is not the only conflict: each of these is needed for this one, and there is another."
    else:
        why = "Not even without any limit: nothing that is offered and known well enough can do it"
        why += f" (of a kind without a count, {NO_LIMIT:,} accelerators are taken to be had)."
    if by_formula is not None:
        said = _named_all(by_formula)
        why = f"The formula alone would plan {said}, but no plan is confirmed by twin runs. {why}"
    return PlanReport(
        name=spec.name,
        objective=spec.objective,
        feasible=False,
        totals=None,
        answers=(),
        training=(),
        sensitivity=(),
        conflict=Conflict(tuple(_said(limit) for limit in limits), tuple(_way(way) for way in ways), why),
        not_judged=left_out,
        checked=by_formula is not None,
    )


def _said(limit: Limit) -> str:
    return f"{limit.name} ≤ {limit.value:g} {limit.unit}" if limit.is_number else limit.name


def _way(way: Way) -> str:
    limit = way.limit
    if way.factor < 0:
        others = ", ".join(way.others) or "other limits"
        return f"{limit.name}: relaxing it alone is not enough; these conflict too: {others}"
    if way.factor == 0:
        return f"{limit.name}: only without it"
    value = limit.value * way.factor
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{limit.name}: {limit.value:g} → {shown} {limit.unit} ({way.factor - 1:+.0%})"
