"""A whole plan checked by twin runs: replicas are added where the twin asks for them, and rivals get a run too."""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from baseload.policy.plan.answer import Check, ModelAnswer, PlanReport
from baseload.policy.plan.candidates import Candidate, better
from baseload.policy.plan.problem import Solved, broken, has_power_limit
from baseload.policy.plan.search import Found, choice_of, totals_of
from baseload.policy.plan.spec import PlanSpec
from baseload.twin.plan_check import Lengths, verify

MOST_RIVALS = 3


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
    chosen: dict[str, list[Candidate]] = {}
    checks: dict[str, list[Check]] = {}
    for name, candidates in found.solved.chosen.items():
        progress(f"checking {name} in the twin")
        drawn = (lengths or {}).get(name, ())
        pairs = [verify(c, requests=spec.check_requests, lengths=drawn) for c in candidates]
        if len(pairs) == 1 and len(spec.models) == 1 and not spec.training and pairs[0][1].raised:
            pairs = [_against_rivals(pairs[0], found, spec, drawn)]
        chosen[name], checks[name] = [c for c, _ in pairs], [check for _, check in pairs]
    solved = Solved(chosen, found.solved.jobs)
    over = broken(spec, solved)
    answers = []
    for answer in found.report.answers:
        noted = [_noted(check, over) for check in checks[answer.model]]
        answers.append(_with_checks(answer, chosen[answer.model], noted, found))
    return replace(found.report, answers=tuple(answers), totals=totals_of(spec, solved))


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
    return replace(answer, chosen=tuple(choice_of(c, predictor) for c in chosen), checks=tuple(checks))
