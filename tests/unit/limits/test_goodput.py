"""Failures, checkpoints and goodput; storage."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from baseload.domain.errors import DataError
from baseload.limits.goodput import CAUSES, LLAMA3, best_interval_s, goodput, spares_needed
from baseload.limits.storage import Store, checkpoint, data_bytes_per_s, loading_slowdown, token_bytes
from baseload.limits.training.work import Work

WORK = Work(name="m", matmul_flops=1, params=1e9, trainable=1e9, layers=10, hidden=100)


def test_the_published_rate_gives_the_published_count() -> None:
    assert 54 * 86_400 / LLAMA3.mean_time_between_s(16_384) == pytest.approx(419)
    assert LLAMA3.mean_time_between_s(100_000) == pytest.approx(86_400 / 47, rel=0.02)
    assert 0.5 < sum(CAUSES.values()) < 1


def test_shares_sum_to_one_and_llama_s_job_reaches_what_was_reported() -> None:
    good = goodput(LLAMA3.mean_time_between_s(16_384), checkpoint_s=2, restart_s=600)
    assert good.work + good.checkpoint + good.lost + good.restart == pytest.approx(1)
    assert good.work > 0.9  # "more than 90 %"
    assert good.mean_time_between_failures_s == pytest.approx(86_400 / (419 / 54))


@given(between=st.floats(600, 1e7), cost=st.floats(0.1, 120), restart=st.floats(0, 900))
def test_the_best_interval_beats_its_neighbours(between: float, cost: float, restart: float) -> None:
    best = goodput(between, checkpoint_s=cost, restart_s=restart)
    for factor in (0.3, 3.0):
        other = goodput(between, checkpoint_s=cost, restart_s=restart, interval_s=best.interval_s * factor)
        assert best.work >= other.work - 1e-6
    assert 0 < best.work < 1


def test_a_checkpoint_dearer_than_the_time_between_failures() -> None:
    assert best_interval_s(100, 300) == 100
    assert best_interval_s(1e6, 10) == pytest.approx((2 * 1e6 * 10) ** 0.5, rel=0.01)
    assert goodput(60, checkpoint_s=300, restart_s=300).work < 0.01
    for wrong in (0, -1):
        with pytest.raises(DataError):
            best_interval_s(100, wrong)
    with pytest.raises(DataError):
        LLAMA3.mean_time_between_s(0)


def test_goodput_agrees_with_a_job_played_out() -> None:
    """A seeded run of the process itself: work, checkpoint, fail, restart."""
    numpy = pytest.importorskip("numpy")
    rng = numpy.random.default_rng(7)
    between, cost, restart, interval = 3_000.0, 20.0, 200.0, 400.0
    now, done = 0.0, 0.0
    failure = rng.exponential(between)
    while done < 400_000:
        if now + interval + cost <= failure:
            now, done = now + interval + cost, done + interval
            continue
        now = failure
        while True:
            failure = now + rng.exponential(between)
            if failure > now + restart:
                now += restart
                break
            now = failure
    modelled = goodput(between, checkpoint_s=cost, restart_s=restart, interval_s=interval)
    assert modelled.work == pytest.approx(done / now, rel=0.03)


def test_spares_cover_repairs() -> None:
    few = spares_needed(LLAMA3, 1_000, repair_hours=24)
    many = spares_needed(LLAMA3, 100_000, repair_hours=24)
    assert 0 < few < many
    assert many > LLAMA3.per_accelerator_hour * 0.78 * 100_000 * 24  # more than are broken on average
    assert spares_needed(LLAMA3, 8, repair_hours=0) == 0


def test_checkpoints_are_as_large_as_the_state_and_as_fast_as_the_store() -> None:
    store = Store(gb_per_s=2.0, node_gb_per_s=25.0)
    sync = checkpoint(WORK, accelerators=16, store=store, asynchronous=False)
    assert sync.size_bytes == 14e9
    assert sync.stop_s == sync.write_s == pytest.approx(7.0)
    lazy = checkpoint(WORK, accelerators=16, store=store)
    assert lazy.write_s == sync.write_s
    assert 1.0 < lazy.stop_s < sync.stop_s
    by_node = checkpoint(WORK, accelerators=8, store=Store(gb_per_s=1_000.0), asynchronous=False)
    assert by_node.write_s == pytest.approx(14 / 25)
    frozen = Work(name="lora", matmul_flops=1, params=1e9, trainable=1e6, layers=10, hidden=100)
    assert checkpoint(frozen, accelerators=8, store=store).size_bytes == 14e6
    with pytest.raises(DataError):
        checkpoint(WORK, accelerators=0, store=store)


def test_data_that_comes_too_slowly_holds_the_step() -> None:
    assert token_bytes(32_000) == 2
    assert token_bytes(128_000) == 4
    store = Store(gb_per_s=1.0)
    assert loading_slowdown(data_bytes_per_s(1_000, 1e5), accelerators=8, store=store) == 1
    assert loading_slowdown(data_bytes_per_s(1_000, 4e6), accelerators=8, store=store) == 4
