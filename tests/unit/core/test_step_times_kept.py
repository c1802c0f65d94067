"""Step times that were learned before: gone on from as if there was no sleep, refused where they cannot be so."""

import msgspec
import numpy as np
import pytest

from baseload.core.step_times import LearnedTimes, StepTimes
from baseload.domain.rng import Rng

SHAPES = [(1 << n, 40 << n, 0) for n in range(6)] + [(1 << n, 0, 1 << (2 * n - 1)) for n in range(5, 10)]


def cost_ns(tokens: int, decode_pairs: int, prefill_pairs: int, *, speed: float = 1.0) -> int:
    return int((20_000_000 + 150_000 * tokens + 900 * decode_pairs + 80 * prefill_pairs) / speed)


def learn(times: StepTimes, steps: int, *, speed: float = 1.0) -> StepTimes:
    rng = Rng(3)
    for _ in range(steps):
        shape = SHAPES[rng.below(len(SHAPES))]
        times.observe(*shape, cost_ns(*shape, speed=speed) * (97 + rng.below(7)) // 100)
    return times


def passed_on(times: StepTimes) -> StepTimes:
    text = msgspec.json.encode(times.learned())
    return StepTimes.of(msgspec.json.decode(text, type=LearnedTimes))


def test_a_later_worker_predicts_what_the_earlier_one_did_and_goes_on_from_there() -> None:
    before = learn(StepTimes(), 200)
    after = passed_on(before)
    for shape in SHAPES:
        assert after.predict(*shape) == before.predict(*shape)
        assert after.hopeful(*shape) == before.hopeful(*shape) < after.predict(*shape)
    assert learn(after, 9).learned() == learn(before, 9).learned()


def test_it_learns_that_the_machine_has_become_another() -> None:
    after = learn(passed_on(learn(StepTimes(), 200)), 200, speed=0.25)
    for shape in SHAPES:
        assert after.predict(*shape) == pytest.approx(cost_ns(*shape, speed=0.25), rel=0.3)


def test_what_is_passed_on_again_and_again_stays_what_it_was() -> None:
    once, often = StepTimes(), StepTimes()
    for number in range(200):
        once = _one_more(once, number)
        often = passed_on(_one_more(often, number))
    assert often.learned() == once.learned()


def _one_more(times: StepTimes, number: int) -> StepTimes:
    shape = SHAPES[number % len(SHAPES)]
    times.observe(*shape, cost_ns(*shape))
    return times


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: {"steps": 0},
        lambda one: {"figures": one.figures[:-1]},
        lambda one: {"figures": [float("nan"), *one.figures[1:]]},
        lambda one: {"figures": [0.0] * len(one.figures)},
        lambda one: {"figures": []},
        lambda one: {"covariance": one.covariance[:-1]},
        lambda one: {"covariance": (-np.asarray(one.covariance)).tolist()},
        lambda one: {"covariance": np.triu(np.asarray(one.covariance)).tolist()},
        lambda one: {"covariance": [[float("inf")] * len(row) for row in one.covariance]},
    ],
)
def test_what_no_steps_can_have_taught_is_refused(spoil) -> None:
    learned = learn(StepTimes(), 100).learned()
    assert StepTimes.of(learned).steps
    with pytest.raises(ValueError, match="these step times"):
        StepTimes.of(msgspec.structs.replace(learned, **spoil(learned)))
