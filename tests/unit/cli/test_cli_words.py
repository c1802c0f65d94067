"""What the commands say: sums of usage, journal records as sentences, errors as exit codes."""

import msgspec
import pytest

from baseload.cli.inspect import By, fold, summed, with_ratios
from baseload.cli.screen import dollars, exit_code, joules, seconds, when
from baseload.cli.words import sentence
from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.errors import BaseloadError, ControlError, DataError, ModelError, SettingsError
from baseload.domain.units import NS_PER_S

ROW = UsageRow(
    "2026-11-20", "key_1", "shop", "guide", 3, 1, 100, 40, 50, 2 * NS_PER_S, 0, 0, 300_000_000, 60_000_000, "modelled"
)
IDLE = UsageRow(
    "2026-11-20", "", "", "guide", 0, 0, 0, 0, 0, 0, 5 * NS_PER_S, NS_PER_S, 600_000_000, 30_000_000, "rapl"
)


def test_sums_keep_every_nanosecond_and_dollar() -> None:
    other = msgspec.structs.replace(ROW, day="2026-11-21", key_id="key_2", key_name="desk")
    rows = [ROW, IDLE, other]
    total = fold(rows)
    assert (total.requests, total.useful_ns, total.idle_ns, total.cold_ns) == (
        6,
        4 * NS_PER_S,
        5 * NS_PER_S,
        NS_PER_S,
    )
    assert (total.cost_nusd, total.energy_basis) == (1_200_000_000, "mixed")
    for by in ([By.DAY], [By.KEY], [By.MODEL], list(By)):
        assert fold(summed(rows, by)) == total
    assert [row.day for row in summed(rows, [By.DAY])] == ["2026-11-20", "2026-11-21"]
    assert [(row.key_id, row.key_name) for row in summed(rows, [By.KEY])] == [
        ("", ""), ("key_1", "shop"), ("key_2", "desk"),
    ]  # fmt: skip


def test_usage_is_summed_by_class_of_service_where_it_is_asked_for() -> None:
    tiers = ["priority", "flex", "default", "flex"]
    rows = [*(msgspec.structs.replace(ROW, tier=tier) for tier in tiers), IDLE]
    assert [(row.tier, row.requests) for row in summed(rows, [By.CLASS])] == [
        ("", 0), ("default", 3), ("flex", 6), ("priority", 3),
    ]  # fmt: skip
    assert [row.tier for row in summed(rows, [By.KEY])] == ["", ""]
    assert with_ratios(rows[0])["tier"] == "priority"


def test_ratios_are_absent_where_nothing_was_used() -> None:
    shown = with_ratios(ROW)
    assert (shown["usd"], shown["joules"], shown["tokens_per_joule"]) == (0.3, 60.0, 2.5)
    assert shown["usd_per_million_tokens"] == pytest.approx(2000)
    assert with_ratios(IDLE)["usd_per_million_tokens"] is None


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("decision", {"what": "scale_up", "why": "one waits", "model": "guide"}, "scale up: one waits"),
        (
            "request",
            {"model": "guide", "outcome": "ok", "reason": None, "arrived_ns": 0, "ended_ns": NS_PER_S,
             "tokens": {"prompt": 4, "completion": 9}},
            "request for guide: ok after 1.00 s, 4 tokens in, 9 out",
        ),
        (
            "request",
            {"model": "guide", "outcome": "ok", "reason": None, "arrived_ns": 0, "ended_ns": NS_PER_S,
             "tokens": {"prompt": 4, "completion": 9}, "tier": "flex"},
            "flex request for guide: ok after 1.00 s, 4 tokens in, 9 out",
        ),
        ("worker_exited", {"replica_id": "r1", "exit_code": -9, "detail": ""}, "worker r1 ended with exit code -9"),
        ("model_put", {"spec": {"name": "guide"}}, "model guide was added or changed"),
        ("something_new", {"a": 1, "b": ""}, "a 1"),
    ],
)  # fmt: skip
def test_records_become_sentences(kind: str, body: dict[str, object], words: str) -> None:
    assert sentence(JournalRow(1, 0, kind, "s", body)) == words


def test_errors_become_exit_codes() -> None:
    errors = (BaseloadError("x"), ModelError("x"), SettingsError("x"), DataError("x"), ControlError("x"))
    assert [exit_code(error) for error in errors] == [1, 1, 2, 2, 3]


def test_figures_keep_the_digits_that_matter() -> None:
    assert [dollars(n) for n in (0, 1_234, 12_340_000_000)] == ["$0.00", "$1.234e-06", "$12.34"]
    assert [joules(n) for n in (1_500_000, 5_000_000_000)] == ["1.5", "5,000"]
    assert [seconds(n) for n in (NS_PER_S // 3, 5000 * NS_PER_S)] == ["0.33", "5,000"]
    assert when(0) == "1970-01-01 00:00:00"
