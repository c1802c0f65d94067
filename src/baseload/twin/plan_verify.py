"""A plan made whole by twin runs: planned, run, corrected where a run misses a level, planned again, until it holds.

What a run finds of a way to serve (an accelerator with its layout, mode and batch) is the share of the formula's
greatest load at which it keeps the levels; the plan is then made again with that, under all its limits, so that it
may take more replicas, or another way. Only an allocation that was run as it stands and breaks no limit is
recommended. When the rounds are over, ways that were run and kept the levels may still make one; else there is none.
"""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from baseload.policy.plan.answer import Check
from baseload.policy.plan.candidates import Candidate, candidate_for, eased, unit_for
from baseload.policy.plan.problem import Problem, Solved, broken
from baseload.policy.plan.search import Confirm, Confirmed
from baseload.policy.plan.spec import PlanSpec
from baseload.twin.plan_check import Lengths, raised_of, rate_of, run_check, share_of, simulated_of

ROUNDS = 8  # plans made, each from what the runs before it found
LAST_ROUNDS = 3  # and of what was run already only
MOST_EASED = 6  # runs in search of the load that one way carries
LEAST_SHARE = 0.1  # of the formula's greatest load: who keeps no level there is given up
STEP, LEAST_STEP = 0.98, 0.6  # a next try is given at most, and at least, so much of the last
QUEUE_STEP = 0.95  # at most, where a wait missed its level
QUEUE = 1.25  # waits grow far faster than load: a miss of TTFT is met as if it were no more than this

Run = Callable[..., Check]


def confirming(
    *,
    lengths: Mapping[str, Lengths] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    run: Run = run_check,
) -> Confirm:
    """For `search`. `lengths` holds (prompt, output) tokens to draw from, by model."""

    def confirm(problem: Problem, spec: PlanSpec, solved: Solved) -> Confirmed:
        return _Rounds(problem, spec, lengths or {}, progress, run).confirm(solved)

    return confirm


class _Rounds:
    """The runs of one plan. A run that was made is not made again."""

    def __init__(
        self,
        problem: Problem,
        spec: PlanSpec,
        lengths: Mapping[str, Lengths],
        progress: Callable[[str], None],
        run: Run,
    ) -> None:
        self._problem = problem
        self._spec = spec
        self._lengths = lengths
        self._progress = progress
        self._run_check = run
        self._made: dict[tuple[object, ...], Check] = {}

    def confirm(self, solved: Solved | None) -> Confirmed:
        """From the formula's allocation to one that runs confirm."""
        learned = self._problem.learned
        for number in range(ROUNDS + LAST_ROUNDS):
            learned.only_run = number >= ROUNDS
            if number:
                self._progress(f"planning again with what the twin found (round {number + 1})")
                solved = self._problem.solve(self._spec)
            if solved is None:
                break
            checks, is_whole = self._checked(solved)
            if is_whole and not broken(self._spec, solved):
                return Confirmed(solved, checks)
        learned.only_run = False  # what conflicts is asked of all ways, unless one that was not run would do it
        learned.only_run = self._problem.solve(self._spec) is not None
        return Confirmed(None, {})

    def _checked(self, solved: Solved) -> tuple[dict[str, list[Check]], bool]:
        """Each choice run as it stands; what missed a level is run with less until it does not: that is learned."""
        checks: dict[str, list[Check]] = {}
        is_whole = True
        for name, candidates in solved.chosen.items():
            self._progress(f"checking {name} in the twin")
            checks[name] = [self._run(candidate) for candidate in candidates]
            for candidate, check in zip(candidates, checks[name], strict=True):
                if check.holds:
                    self._kept(candidate, candidate.unit.share)
                else:
                    is_whole = False
                    self._ease(candidate, check)
        return checks, is_whole

    def _kept(self, candidate: Candidate, share: float) -> None:
        network_ms = candidate.place.site.network_ms
        self._problem.learned.kept(candidate.model, candidate.unit.option, network_ms, share)

    def _ease(self, candidate: Candidate, check: Check) -> None:
        """Look for the load at which a way that missed keeps the levels, and remember it."""
        model, place = candidate.model, candidate.place
        whole = unit_for(
            candidate.unit.option, model.traffic, model.levels, network_ms=place.site.network_ms,
            objective=self._spec.objective,
        )  # fmt: skip
        assert whole is not None, "it was chosen"
        share = min(candidate.unit.share, rate_of(candidate) / whole.rate)
        for _ in range(MOST_EASED):
            share *= self._factor(candidate, check)
            if share < LEAST_SHARE:
                break
            part = share_of(candidate)
            candidate = candidate_for(eased(whole, share), model, place, share=part)
            check = self._run(candidate)
            if check.holds:
                self._kept(candidate, share)
                return
        self._problem.learned.failed(model, candidate.unit.option, place.site.network_ms, max(LEAST_SHARE, share))

    def _factor(self, candidate: Candidate, check: Check) -> float:
        """How much less a way is given next: as much as brings the formula's times down by what was missed."""
        model, unit = candidate.model, candidate.unit
        levels = model.levels
        if check.refused:
            return LEAST_STEP
        over_tpot = check.twin_tpot_ms / levels.tpot_ms if levels.tpot_ms else 0.0
        over_ttft = min(QUEUE, check.twin_ttft_ms / levels.ttft_ms) if levels.ttft_ms else 0.0
        tighter = replace(
            levels,
            tpot_ms=candidate.tpot_ms / over_tpot if over_tpot > 1.0 else levels.tpot_ms,
            ttft_ms=candidate.ttft_ms / over_ttft if over_ttft > 1.0 else levels.ttft_ms,
        )
        network_ms = candidate.place.site.network_ms
        less = unit_for(unit.option, model.traffic, tighter, network_ms=network_ms, objective=self._spec.objective)
        ratio = less.rate / rate_of(candidate) if less is not None else 0.0
        return min(QUEUE_STEP if over_ttft > 1.0 else STEP, max(LEAST_STEP, ratio))

    def _run(self, candidate: Candidate) -> Check:
        """The candidate's check; what differs from one that was run in nothing that a run sees, is not run again."""
        unit, name = candidate.unit, candidate.model.name
        key = (
            name, id(unit.option), unit.decode.slots, unit.prefill_workers, unit.decode_workers,
            candidate.place.site.network_ms, simulated_of(candidate), f"{rate_of(candidate):.4g}",
        )  # fmt: skip
        if key not in self._made:
            drawn = self._lengths.get(name, ())
            self._made[key] = self._run_check(candidate, requests=self._spec.check_requests, lengths=drawn)
        return replace(self._made[key], raised=raised_of(candidate))
