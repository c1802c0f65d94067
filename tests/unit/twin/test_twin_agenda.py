"""The virtual clock, and the settings of a simulation."""

from pathlib import Path

import pytest

from baseload.domain.errors import SettingsError
from baseload.domain.rng import Rng
from baseload.twin.agenda import Agenda
from baseload.twin.chance import Draws, bits
from baseload.twin.reading import load
from baseload.twin.report import TimelinePoint, percentiles, thin


def order(seed: int) -> list[int]:
    agenda, seen = Agenda(seed, start_ns=0), []
    for number in range(20):
        agenda.at(5, lambda number=number: seen.append(number))  # type: ignore[misc]
    while agenda.step():
        pass
    return seen


def test_things_due_at_once_happen_in_an_order_that_is_seeded() -> None:
    assert order(1) == order(1)
    assert sorted(order(1)) == list(range(20))
    assert len({tuple(order(seed)) for seed in range(10)}) == 10


def test_time_moves_only_forward_and_dropped_things_never_happen() -> None:
    agenda, seen = Agenda(1, start_ns=100), []
    agenda.at(300, lambda: seen.append(("late", agenda.now_ns)))
    agenda.at(50, lambda: seen.append(("past", agenda.now_ns)))
    agenda.drop(agenda.at(200, lambda: seen.append(("dropped", agenda.now_ns))))
    agenda.after(20, lambda: agenda.after(20, lambda: seen.append(("chained", agenda.now_ns))))
    while agenda.step():
        pass
    assert seen == [("past", 100), ("chained", 140), ("late", 300)]
    assert not agenda.step()


def test_a_specification_is_read_and_remembers_its_path(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('seed = 9\n[[models]]\nname = "a"\nsource = "x"\n[workload]\nrate_per_s = 2.5\n')
    config = load(path)
    assert (config.seed, config.models[0].name, config.workload.rate_per_s) == (9, "a", 2.5)
    assert config.spec_path == str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed = 9", "sed"),
        ("[workload]\nrate = 1.0", "rate"),
        ("[faults]\ncrashes = 1.0", "crashes"),
        ('[[models]]\nname = "a"\nsource = "x"\n[models.scaling]\nmax = 2', "max"),
        ("seed = ", "not valid TOML"),
        ('seed = "one"', "seed"),
        ("[workload]\nrequests = -4", r"\[workload\]: `requests`"),
        ("[workload]\nrate_per_s = nan", r"\[workload\]: `rate_per_s`"),
        ("[[workload.sources]]\nstream = 1.5", r"\[workload.sources\[0\]\]: `stream`"),
        ("[faults]\ndisconnects = 4.0", r"\[faults\]: `disconnects`"),
        ("[energy]\npue = inf", "energy"),
    ],
)
def test_unknown_and_wrong_settings_are_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said) as caught:
        load(path)
    assert "spec.toml" in str(caught.value)


def test_a_missing_specification_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml"):
        load(tmp_path / "none.toml")


def test_percentiles_are_of_nearest_rank() -> None:
    found = percentiles(n * 1_000_000 for n in range(1, 101))
    assert (found.count, found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms) == (100, 50.0, 90.0, 99.0, 100.0)
    assert found.mean_ms == 50.5
    assert percentiles([]).count == 0


def test_a_long_timeline_is_thinned_and_keeps_its_end() -> None:
    points = [TimelinePoint(float(n), 0, 0, 0, 0, 0) for n in range(1001)]
    kept = thin(points, most=100)
    assert len(kept) <= 101
    assert (kept[0].at_s, kept[-1].at_s) == (0.0, 1000.0)
    assert thin([], most=5) == ()


@pytest.mark.parametrize("seed", [0, 7, (1 << 64) - 1])
def test_bits_made_many_at_a_time_are_those_of_the_generator(seed: int) -> None:
    one, many, below = (Rng(seed, "a stream") for _ in range(3))
    draws = Draws(below)
    for made, _ in zip(bits(many), range(9_000), strict=False):  # over several refills
        state = one.state
        assert made == one.u64()
        one.state = state
        assert draws.below(1_000_003) == one.below(1_000_003)


def test_an_agenda_runs_until_something_holds_or_time_or_work_is_over() -> None:
    agenda, seen = Agenda(1, start_ns=0), list[int]()
    for at_ns in (5, 10, 20):
        agenda.at(at_ns, lambda at_ns=at_ns: seen.append(at_ns))
    agenda.drop(agenda.at(7, lambda: seen.append(7)))
    assert agenda.run(lambda: len(seen) == 2, limit_ns=100)
    assert (seen, agenda.now_ns) == ([5, 10], 10)
    assert not agenda.run(lambda: len(seen) == 9, limit_ns=15)
    assert (seen, agenda.now_ns) == ([5, 10, 20], 20), "what is past the limit still happens, then it ends"
    assert not agenda.run(lambda: False, limit_ns=100)
