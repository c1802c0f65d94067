"""A whole plan checked by twin runs: replicas are added where the twin asks for them, and rivals get a run too."""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from baseload.policy.plan.answer import Check, ModelAnswer, PlanReport
from baseload.policy.plan.candidates import Candidate, better, candidate_for
from baseload.policy.plan.problem import Solved, broken, has_power_limit
from baseload.policy.plan.search import Found, chosen_of, totals_of
from baseload.policy.plan.spec import PlanSpec
from baseload.twin.plan_check import Lengths, share_of, verify

MOST_RIVALS = 3
MOST_MARGINS = 2  # plans made again, with times as much longer as the twin asks for
MOST_MARGIN = 1.5
QUEUE_MARGIN = 1.08  # waits grow far faster than load: a miss of TTFT asks for no more than this at a time


def verified(
    found: Found,
    spec: PlanSpec,
    *,
    lengths: Mapping[str, Lengths] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> PlanReport:
    """The report with each choice checked. `lengths` holds (prompt, output) tokens to draw from, by model."""
    if found.solved is None:
        return found.report
    solved, checks = _checked(found.solved, found, spec, lengths or {}, progress)
    slow = {model.name: 1.0 for model in spec.models}
    for _ in range(MOST_MARGINS):
        missed = _missed(solved, checks, spec)
        if max(missed.values(), default=0.0) <= 1.0:
            break
        slow = {name: each * max(1.0, missed[name]) for name, each in slow.items()}
        again = found.problem.solve(spec, slow=slow)
        if again is None:
            break
        longer = ", ".join(f"{name} {each - 1.0:+.0%}" for name, each in slow.items() if each > 1.0)
        progress(f"planning again with longer times: {longer}")
        eased = {name: [_at_its_load(c) for c in many] for name, many in again.chosen.items()}
        solved, checks = _checked(Solved(eased, again.jobs), found, spec, lengths or {}, progress)
    over, chosen = broken(spec, solved), solved.chosen
    answers = []
    for answer in found.report.answers:
        noted = [_noted(check, over) for check in checks[answer.model]]
        answers.append(_with_checks(answer, chosen[answer.model], noted, found))
    return replace(found.report, answers=tuple(answers), totals=totals_of(spec, solved))


def _checked(
    solved: Solved, found: Found, spec: PlanSpec, lengths: Mapping[str, Lengths], progress: Callable[[str], None]
) -> tuple[Solved, dict[str, list[Check]]]:
    """Each choice run, and raised where the run asks for it."""
    chosen: dict[str, list[Candidate]] = {}
    checks: dict[str, list[Check]] = {}
    for name, candidates in solved.chosen.items():
        progress(f"checking {name} in the twin")
        drawn = lengths.get(name, ())
        pairs = [verify(c, requests=spec.check_requests, lengths=drawn) for c in candidates]
        if len(pairs) == 1 and len(spec.models) == 1 and not spec.training and pairs[0][1].raised:
            pairs = [_against_rivals(pairs[0], found, spec, drawn)]
        chosen[name], checks[name] = [c for c, _ in pairs], [check for _, check in pairs]
    return Solved(chosen, solved.jobs), checks


def _missed(solved: Solved, checks: dict[str, list[Check]], spec: PlanSpec) -> dict[str, float]:
    """By how much each model's times should be stretched for another plan: what the twin missed a level by, or the
    replicas added where a limit of the plan is broken; at most 1: not at all."""
    over = bool(broken(spec, solved))
    found = {}
    for model in spec.models:
        worst = 0.0
        for check, candidate in zip(checks[model.name], solved.chosen[model.name], strict=True):
            ratios = [0.0]
            if model.levels.ttft_ms:
                ratios.append(min(QUEUE_MARGIN, check.twin_ttft_ms / model.levels.ttft_ms))
            if model.levels.tpot_ms:
                ratios.append(check.twin_tpot_ms / model.levels.tpot_ms)
            if not check.holds:
                worst = max(worst, 1.02 * max(ratios))
            elif over and check.raised:
                worst = max(worst, candidate.replicas / (candidate.replicas - check.raised))
        found[model.name] = min(worst, MOST_MARGIN)
    return found


def _at_its_load(candidate: Candidate) -> Candidate:
    """The candidate with the formula's own times at the load it was given."""
    return candidate_for(
        candidate.unit, candidate.model, candidate.place, replicas=candidate.replicas, share=share_of(candidate)
    )


def _against_rivals(
    first: tuple[Candidate, Check], found: Found, spec: PlanSpec, lengths: Lengths
) -> tuple[Candidate, Check]:
    """The best of the first and the next in the ranking, each as the twin leaves it."""
    best = first
    seen = {_place(first[0])}
    model = spec.models[0]
    rivals = sorted(found.problem.candidates(spec, model), key=lambda c: better(c, spec.objective))
    for rival in rivals:
        if len(seen) > MOST_RIVALS or (
            best[1].holds and better(rival, spec.objective) >= better(best[0], spec.objective)
        ):
            break
        powerless = not rival.mean_w and (has_power_limit(spec, rival.place) or spec.objective == "tokens_per_joule")
        if _place(rival) in seen or powerless or broken(spec, Solved({model.name: [rival]}, {})):
            continue
        seen.add(_place(rival))
        other = verify(rival, requests=spec.check_requests, lengths=lengths)
        if not other[1].holds or broken(spec, Solved({model.name: [other[0]]}, {})):
            continue
        if not best[1].holds or better(other[0], spec.objective) < better(best[0], spec.objective):
            best = other
    return best


def _place(candidate: Candidate) -> tuple[str, str, str]:
    return candidate.place.site.name, candidate.place.accelerator, candidate.place.tier


def _noted(check: Check, over: list[str]) -> Check:
    if not check.raised or not over:
        return check
    note = f"the replicas added break: {', '.join(over)}"
    return replace(check, note="; ".join(filter(None, [check.note, note])), holds=False)


def _with_checks(answer: ModelAnswer, chosen: list[Candidate], checks: list[Check], found: Found) -> ModelAnswer:
    predictor = found.problem.predictor
    return replace(answer, chosen=tuple(chosen_of(c, predictor) for c in chosen), checks=tuple(checks))
