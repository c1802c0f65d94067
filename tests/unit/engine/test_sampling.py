import numpy as np
import pytest

from baseload.domain.sampling import Sampling
from baseload.engine.sampling import Choice, RowSampler, SamplingFailed, sample

LOGITS = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], np.float32))
CHI_SQUARE_999 = {
    1: 10.8,
    2: 13.8,
    3: 16.3,
    5: 20.5,
}  # by degrees of freedom; seeds are fixed, so this never flickers


def draws(sampling: Sampling, count: int = 4000, logits: np.ndarray = LOGITS) -> np.ndarray:
    made = [RowSampler(sampling, seed=seed).choose(logits).token for seed in range(count // 10)]
    for seed in range(count // 10):  # ten tokens of one sequence
        sampler = RowSampler(sampling, seed=10_000 + seed)
        made += [sampler.choose(logits).token for _ in range(9)]
    return np.bincount(made, minlength=len(logits))


def assert_follows(counts: np.ndarray, probabilities: np.ndarray) -> None:
    kept = probabilities > 0
    assert counts[~kept].sum() == 0
    wanted = probabilities[kept] / probabilities.sum() * counts.sum()
    chi_square = float(((counts[kept] - wanted) ** 2 / wanted).sum())
    assert chi_square < CHI_SQUARE_999[int(kept.sum()) - 1]


P = np.exp(LOGITS).astype(np.float64)


@pytest.mark.parametrize(
    ("sampling", "probabilities"),
    [
        (Sampling(), P),
        (Sampling(temperature=0.5), P**2),
        (Sampling(temperature=2.0), P**0.5),
        (Sampling(top_k=3), P * [1, 1, 1, 0, 0, 0]),
        (Sampling(top_p=0.7), P * [1, 1, 1, 0, 0, 0]),  # 0.4 + 0.25 < 0.7 ≤ 0.8
        (Sampling(top_p=0.64), P * [1, 1, 0, 0, 0, 0]),
        (Sampling(min_p=0.3), P * [1, 1, 1, 0, 0, 0]),  # 0.12 and more
        (Sampling(top_k=3, top_p=0.75), P * [1, 1, 0, 0, 0, 0]),  # of the 0.8 that top_k left, 0.6
        (Sampling(top_p=0.95, min_p=0.3), P * [1, 1, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_the_distribution_is_the_asked_one(sampling: Sampling, probabilities: np.ndarray) -> None:
    assert_follows(draws(sampling), probabilities)


def test_large_vocabularies_are_drawn_alike() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=5000).astype(np.float32)
    heavy = np.argsort(-logits)[:4]
    logits[heavy] += 6.0
    p = np.exp(logits.astype(np.float64))
    groups = np.array([*p[heavy], p.sum() - p[heavy].sum()])
    made = draws(Sampling(), logits=logits)
    counts = np.array([*made[heavy], made.sum() - made[heavy].sum()])
    chi_square = float(((counts - groups / groups.sum() * counts.sum()) ** 2 / (groups / groups.sum() * 4000)).sum())
    assert chi_square < 18.5  # 4 degrees of freedom


def test_a_wide_nucleus_needs_more_candidates() -> None:
    logits = np.linspace(0.0, 0.1, 3000).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    order = np.argsort(-p)
    allowed = order[: int(np.searchsorted(p[order].cumsum(), 0.5 * p.sum())) + 1]
    made = np.flatnonzero(draws(Sampling(top_p=0.5), logits=logits, count=2000))
    assert set(made) <= set(allowed)
    assert made.min() < allowed.min() + 30  # and the far end of the nucleus is reached


def test_greedy_ties_go_to_the_lowest_id() -> None:
    row = np.array([0.0, 2.0, 2.0, 1.0], np.float32)
    assert RowSampler(Sampling(temperature=0.0), seed=1).choose(row) == Choice(1)


def test_penalties_count_generated_tokens_only() -> None:
    row = np.array([1.0, 0.8, 0.0], np.float32)
    sampler = RowSampler(Sampling(temperature=0.0, frequency_penalty=0.15), seed=0)
    assert [sampler.choose(row).token for _ in range(6)] == [
        0,
        0,
        1,
        0,
        1,
        0,
    ]  # 1.0, .85, .7|.8, .7|.65, .55|.65, .55|.5
    sampler = RowSampler(Sampling(temperature=0.0, presence_penalty=0.9), seed=0)
    assert [sampler.choose(row).token for _ in range(5)] == [0, 1, 0, 0, 0]  # 1.0; .1|.8; .1|-.1|0.0: once only
    assert row.tolist() == [1.0, np.float32(0.8), 0.0]


def test_logit_bias_bans_and_forces() -> None:
    row = np.array([1.0, 0.8, 0.0], np.float32)
    ban = Sampling(logit_bias=((0, -100.0), (1, -100.0)))
    assert {RowSampler(ban, seed=seed).choose(row).token for seed in range(50)} == {2}
    force = Sampling(temperature=0.0, logit_bias=((2, 100.0),))
    assert RowSampler(force, seed=0).choose(row).token == 2


def test_logprobs_are_of_the_raw_logits() -> None:
    sampling = Sampling(temperature=0.0, logit_bias=((3, 100.0),), logprobs=True, top_logprobs=2)
    choice = RowSampler(sampling, seed=0).choose(LOGITS)
    assert choice.token == 3
    assert choice.logprob == pytest.approx(np.log(0.1), abs=1e-5)
    assert [token for token, _ in choice.top] == [0, 1]
    assert [value for _, value in choice.top] == pytest.approx([np.log(0.4), np.log(0.25)], abs=1e-5)


def test_same_seed_same_tokens_other_seed_or_choice_others() -> None:
    def run(seed: int, choice: int = 0) -> list[int]:
        sampler = RowSampler(Sampling(), seed=seed, choice=choice)
        return [sampler.choose(LOGITS).token for _ in range(40)]

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert run(3) != run(3, choice=1)
    assert run(3, choice=1) != run(3, choice=2)


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 3001)).astype(np.float32) * 3
    asked = [
        Sampling(),
        Sampling(top_p=0.9),
        Sampling(temperature=0.0),
        Sampling(top_k=50, min_p=0.01),
        Sampling(min_p=0.05, logprobs=True, top_logprobs=3),
        Sampling(temperature=1.7, frequency_penalty=0.5),
        Sampling(logit_bias=((4, 3.0),)),
        Sampling(top_p=0.2),
    ]

    def samplers() -> list[RowSampler]:
        return [RowSampler(sampling, seed=i) for i, sampling in enumerate(asked)]

    together = sample(logits, samplers())
    alone = [sample(logits[i : i + 1].copy(), [sampler])[0] for i, sampler in enumerate(samplers())]
    assert together == alone


def test_a_broken_row_fails_alone() -> None:
    logits = np.stack([LOGITS, np.full(6, np.nan, np.float32), LOGITS])
    results = sample(logits, [RowSampler(Sampling(temperature=t), seed=1) for t in (0.0, 1.0, 1.0)])
    assert isinstance(results[0], Choice)
    assert isinstance(results[1], SamplingFailed)
    assert isinstance(results[2], Choice)
    assert isinstance(sample(logits[1:2], [RowSampler(Sampling(temperature=0.0), seed=1)])[0], SamplingFailed)


def test_extreme_temperatures_do_not_overflow() -> None:
    row = np.array([300.0, -300.0, 299.0], np.float32)
    assert RowSampler(Sampling(temperature=1e-4), seed=5).choose(row).token == 0
    assert RowSampler(Sampling(temperature=2.0, top_p=0.99), seed=5).choose(row).token in (0, 2)
