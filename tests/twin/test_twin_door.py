"""The door deals as the production router would: evenly by work, conversations and common beginnings together."""

import statistics

import msgspec
import pytest

from baseload.domain.errors import SettingsError
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.limits.step_time import StepTimeSpec
from baseload.twin.door import dealt
from baseload.twin.hunts import run_or_hunt
from baseload.twin.sources import all_arrivals
from baseload.twin.spec import Physics, SimulateConfig, Source, Workload
from baseload.twin.workload import Arrival

MODEL = ModelSpec(
    name="m",
    source="simulated",
    scaling=Scaling(min_replicas=20, max_replicas=20),
    admission=Admission(max_concurrency_per_replica=8),
    context_tokens=8192,
)
FAST = StepTimeSpec(
    basis="stated", fixed_ms=8.0, prefill=((512, 40.0),), decode=((32, 6.0),), context=((100_000, 10.0),)
)
SOURCE = Source(rate_per_s=60.0, duration_s=60.0, prompt_tokens=200, output_tokens=80, spread=1.0)


def config(source: Source, *, cells: int = 10) -> SimulateConfig:
    return SimulateConfig(
        models=(MODEL,), physics=Physics(step_time=FAST), workload=Workload(sources=(source,)), cells=cells, lean=True
    )


def work(arrivals: list[Arrival]) -> int:
    return sum(arrival.output_tokens for arrival in arrivals)


def test_nothing_is_lost_nor_dealt_twice_and_order_is_kept() -> None:
    chosen = config(SOURCE)
    parts = dealt(chosen)
    assert len(parts) == 10
    everyone = sorted((a for part in parts for a in part), key=lambda a: a.at_ns)
    assert everyone == all_arrivals(chosen.workload, models=["m"], seed=chosen.seed)
    assert all(part == sorted(part, key=lambda a: a.at_ns) for part in parts)
    assert dealt(chosen) == parts


def test_work_is_spread_more_evenly_than_by_chance() -> None:
    parts = dealt(config(SOURCE))
    chance = [0] * 10
    for at, arrival in enumerate(a for part in parts for a in part):
        chance[at * 7_919 % 10_007 % 10] += arrival.output_tokens

    def uneven(loads: list[int]) -> float:
        return statistics.stdev(loads) / statistics.mean(loads)

    assert uneven([work(part) for part in parts]) < 0.6 * uneven(chance)


def test_a_smaller_cell_gets_less() -> None:
    parts = dealt(config(SOURCE, cells=3))  # 7, 7 and 6 replicas
    assert work(parts[2]) < 0.95 * work(parts[0])
    assert work(parts[2]) > 0.75 * work(parts[0])


def test_common_beginnings_go_where_they_were_seen() -> None:
    source = msgspec.structs.replace(SOURCE, rate_per_s=4.0, shared_prefix=1.0, prefixes=6)
    parts = dealt(config(source))
    for prefix in range(6):
        counts = sorted(sum(a.prefix == prefix for a in part) for part in parts)
        assert counts[-1] > 0.33 * sum(counts), (
            "by chance about a fifth: most requests of a prefix share a cell while it is not busier"
        )
    sessions = dealt(config(msgspec.structs.replace(source, kind="sessions", rate_per_s=1.0, turns=4)))
    assert sum(a.then is not None for part in sessions for a in part) > 10, "later turns stay with the first"


def test_one_cell_alone_is_what_it_is_in_the_whole() -> None:
    source = msgspec.structs.replace(SOURCE, duration_s=5.0)
    chosen = msgspec.structs.replace(config(source, cells=2), processes=1)
    whole = run_or_hunt(chosen)
    alone = [run_or_hunt(msgspec.structs.replace(chosen, only_cell=cell)) for cell in range(2)]
    assert whole.requests == sum(one.requests for one in alone)
    assert whole.usd == pytest.approx(sum(one.usd for one in alone))
    with pytest.raises(SettingsError, match="no cell 2"):
        run_or_hunt(msgspec.structs.replace(chosen, only_cell=2))
    with pytest.raises(SettingsError, match="not in cells"):
        run_or_hunt(msgspec.structs.replace(chosen, cells=1, only_cell=0))
