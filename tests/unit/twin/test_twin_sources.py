"""Sources of traffic: each has the rate and shape it says; sessions share beginnings; traces of any columns."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from baseload.domain.errors import DataError, SettingsError
from baseload.twin.prefixes import kv_hashes, router_hashes
from baseload.twin.sources import all_arrivals, times_of
from baseload.twin.spec import Source, Workload
from baseload.twin.traces import read_trace
from baseload.twin.workload import Arrival


def times(source: Source, seed: int = 1) -> np.ndarray:
    return times_of(source, np.random.default_rng(seed))


def made(
    *sources: Source, models: tuple[str, ...] = ("m",), seed: int = 1, base: Path | None = None
) -> list[Arrival]:
    return all_arrivals(Workload(sources=sources), models=models, seed=seed, base=base)


@pytest.mark.parametrize("kind", ["poisson", "gamma", "diurnal", "bursts"])
def test_the_mean_rate_and_the_time_are_those_asked_for(kind: str) -> None:
    got = times(Source(kind=kind, rate_per_s=3.0, duration_s=86_400.0, start_s=50.0))
    if kind != "bursts":
        assert len(got) == pytest.approx(3.0 * 86_400, rel=0.03)
    assert np.all(np.diff(got) >= 0)
    assert got[0] >= 50.0
    assert got[-1] < 86_450.0


def test_gamma_gaps_vary_as_asked_for() -> None:
    gaps = np.diff(times(Source(kind="gamma", rate_per_s=1.0, requests=60_000, burstiness=8.0)))
    assert gaps.std() ** 2 / gaps.mean() ** 2 == pytest.approx(8.0, rel=0.15)
    poisson = np.diff(times(Source(rate_per_s=1.0, requests=60_000)))
    assert poisson.std() / poisson.mean() == pytest.approx(1.0, rel=0.05)


def test_a_day_has_its_peak_where_it_says_and_weekends_are_quieter() -> None:
    got = times(
        Source(kind="diurnal", rate_per_s=2.0, duration_s=7 * 86_400.0, peak_hour=20.0, trough=0.25, weekend=0.5)
    )
    by_hour = np.bincount((got % 86_400 // 3600).astype(int), minlength=24)
    assert abs(int(np.argmax(by_hour)) - 20) <= 2
    assert by_hour.min() / by_hour.max() == pytest.approx(0.25, abs=0.05)
    by_day = np.bincount((got // 86_400).astype(int))
    assert by_day[5:].mean() / by_day[:5].mean() == pytest.approx(0.5, abs=0.03)


def test_bursts_are_bursts() -> None:
    source = Source(kind="bursts", rate_per_s=2.0, duration_s=20_000, burst=10, burst_every_s=500, burst_s=20)
    per_s = np.bincount(times(source).astype(int), minlength=20_000)
    assert np.median(per_s) <= 3
    assert (per_s >= 12).mean() == pytest.approx(20 / 500, rel=0.5)


def test_a_conversation_goes_on_from_what_was_said() -> None:
    chats = made(
        Source(kind="sessions", rate_per_s=1.0, requests=300, turns=4, think_s=10.0, system_tokens=320, spread=0.4)
    )
    assert len(chats) == 300
    turns = 0
    for first in chats:
        turn: Arrival | None = first
        while turn is not None:
            turns += 1
            then = turn.then
            if then is not None:
                assert then.prompt_tokens > turn.prompt_tokens + turn.output_tokens
                before, after = kv_hashes(turn, 16), kv_hashes(then, 16)
                assert after[: len(before)] == before
                assert len(before) == (turn.prompt_tokens + turn.output_tokens) // 16
                mine, theirs = router_hashes(turn), router_hashes(then)
                assert theirs[: len(mine)] == mine
                assert len(theirs) <= 8
            turn = then
    assert turns / 300 == pytest.approx(4.0, rel=0.2)
    one, other = kv_hashes(chats[0], 16), kv_hashes(chats[1], 16)
    assert one[:20] == other[:20], "all begin with the same system prompt"
    assert not set(one[20:]) & set(other[20:])


def test_a_mix_is_in_order_and_one_source_does_not_change_another() -> None:
    a, b = (
        Source(rate_per_s=2.0, requests=50, model="a"),
        Source(kind="gamma", rate_per_s=1.0, requests=50, model="b"),
    )
    both = made(a, b, models=("a", "b"))
    assert all(x.at_ns <= y.at_ns for x, y in pairwise(both))
    assert [x for x in both if x.model == "a"] == made(a, models=("a", "b"))
    assert both == made(a, b, models=("a", "b"))
    assert both != made(a, b, models=("a", "b"), seed=2)


def test_mooncake_lines_bring_their_blocks(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"timestamp": 27000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 7, 9]}\n'
        '{"timestamp": 28500, "input_length": 600, "output_length": 2, "hash_ids": [0, 8]}\n'
    )
    first, second = made(Source(kind="trace", trace="t.jsonl"), base=tmp_path)
    assert (first.at_ns, second.at_ns) == (0, 1_500_000_000)
    assert (first.prompt_tokens, first.blocks) == (1100, (0, 7, 9))
    mine, theirs = kv_hashes(first, 16), kv_hashes(second, 16)
    assert (len(mine), len(theirs)) == (68, 37)
    assert mine[:32] == theirs[:32]
    assert mine[32] != theirs[32]
    assert router_hashes(first)[:4] == router_hashes(second)[:4]
    with pytest.raises(DataError, match="line 1"):
        read_trace(_written(tmp_path / "bad.jsonl", '{"timestamp": 1}\n'))


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    path = _written(tmp_path / "t.csv", "when,in,out,timestamp\n0.5,3,4,x\n1.5,5,6,x\n")
    rows = read_trace(path, columns={"arrival_s": "when", "input_tokens": "In", "output_tokens": "out"})
    assert [(row.at_ns, row.input_tokens, row.output_tokens) for row in rows] == [(0, 3, 4), (10**9, 5, 6)]
    with pytest.raises(DataError, match="no column named 'wann'"):
        read_trace(path, columns={"arrival_s": "wann"})
    with pytest.raises(DataError, match="none of ours"):
        read_trace(path, columns={"arrival": "when", "prompt": "in"})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Source(), "duration_s"),
        (Source(requests=5, rate_per_s=0.0), "rate_per_s"),
        (Source(kind="uniform", requests=1), "unknown kind"),
        (Source(requests=1, model="x"), "no model 'x'"),
        (Source(duration_s=1e9, rate_per_s=100.0), "more than"),
    ],
)
def test_what_cannot_be_made_is_refused(source: Source, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        made(source)
