"""The dashboard's words and figures, from given states."""

import pytest

from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.fleet import ReplicaState, WorkerSample
from baseload.domain.model import ModelSpec, Price, Scaling
from baseload.domain.status import ControlStatus, ModelStatus, ReplicaStatus
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Tier
from baseload.web.snapshot import History, headline, key_lines, model_says, span, take, today

SPEC = ModelSpec("guide", "/g", price=Price(usd_per_hour=0.5))
NOW = 1000 * NS_PER_S


def model(state: str, **changes: object) -> ModelStatus:
    fields: dict[str, object] = dict.fromkeys(
        ("desired", "ready", "starting", "draining", "queued", "oldest_wait_ns", "in_flight", "crashes",
         "retry_at_ns", "requests_total", "prompt_tokens_total", "completion_tokens_total"),
        0,
    )  # fmt: skip
    return ModelStatus(name="guide", state=state, last_error="", **{**fields, **changes})  # type: ignore[arg-type]


def replica(state: ReplicaState) -> ReplicaStatus:
    return ReplicaStatus(
        "r1", "guide", state, "", 1, NOW - NS_PER_S, 0, 1, WorkerSample(kv_usage=0.5), 0, 0, 0, 30.0, "rapl"
    )


def status(*models: ModelStatus, replicas: tuple[ReplicaStatus, ...] = (), **changes: object) -> ControlStatus:
    fields: dict[str, object] = {"queued": 0, "in_flight": 0, "keys": 1, "requests_total": 0, "refused_total": 0}
    fields |= {"shutting_down": False, **changes}
    return ControlStatus(NOW, 0, 1, "p", models, replicas, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (status(), "No model yet."),
        (status(model("asleep")), "The model guide is asleep. Nothing is waiting. It costs nothing right now."),
        (status(model("awake"), model("asleep"), model("asleep")), "One awake and two asleep."),
        (status(model("waking"), queued=1, in_flight=0), "One request waiting, no running."),
        (status(model("backing off")), "The model guide is failing to start."),
        (status(model("awake"), shutting_down=True, in_flight=2), "Stopping: two running requests may finish first."),
    ],
)
def test_headline(given: ControlStatus, words: str) -> None:
    assert words in headline(given, 0.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (model("asleep"), "Asleep: it costs nothing. Send it a request and it wakes (the last time in 1.8 s)."),
        (model("waking", queued=1), "Waking: a worker loads its weights. one request waits for it."),
        (model("awake"), "Awake and idle. It goes to sleep after 5 min without a request."),
        (model("awake", in_flight=2, queued=3), "Working on two requests, three requests wait for it."),
        (
            model("backing off", crashes=2, retry_at_ns=NOW + 4 * NS_PER_S),
            "failed 2 times in a row. Next try in 4 s;",
        ),
        (model("draining", in_flight=1), "Going to sleep: one running request may finish first."),
        (model("asleep", crashes=1), "Asleep after its worker failed once. The next request tries again."),
        (model("remote"), "somebody else's worker"),
    ],
)
def test_what_a_model_says(given: ModelStatus, words: str) -> None:
    assert words in model_says(given, SPEC, now_ns=NOW, wake_ns=1_800_000_000)


def test_a_model_that_never_sleeps_says_so() -> None:
    spec = ModelSpec("guide", "/g", scaling=Scaling(min_replicas=1))
    assert "At least one replica always stays up." in model_says(model("awake"), spec, now_ns=NOW)


def test_only_living_replicas_cost_and_draw() -> None:
    shown = take(
        status(model("awake"), replicas=(replica(ReplicaState.READY), replica(ReplicaState.GONE))),
        [SPEC],
        version="1",
        history=History(1.0, (1.0, 2.5), (0, 1), (0, 0), (0.0, 30.0), (0.0, 0.5)),
        requests_last_minute=7,
        wake_ns={},
        keys=[],
        usage=None,
        decisions=[
            JournalRow(n, NOW, "decision", "r1", {"what": "wake", "model": "guide", "why": "w"}) for n in (1, 2)
        ],
    )
    assert (shown.usd_per_hour, shown.power_w, shown.power_basis, shown.tokens_per_s) == (0.5, 30.0, "rapl", 2.5)
    assert [card.kv_usage for card in shown.models[0].replicas] == [0.5]
    assert [line.seq for line in shown.decisions] == [2, 1], "the newest first"


def test_today_sums_rows_and_names_the_basis() -> None:
    row = UsageRow("d", "k", "n", "guide", 2, 1, 60, 0, 40, NS_PER_S, 0, 0, 50_000_000, 20_000_000, "rapl")
    idle = UsageRow("d", "", "", "guide", 0, 0, 0, 0, 0, 0, NS_PER_S, 0, 50_000_000, 30_000_000, "modelled")
    sums = today([row, idle])
    assert (sums.tokens, sums.usd, sums.joules, sums.basis) == (100, 0.1, 50.0, "mixed")
    assert (sums.usd_per_million_tokens, sums.tokens_per_joule) == (pytest.approx(1000.0), 2.0)
    assert today([]).tokens_per_joule is None


def used(key_id: str, tier: str, requests: int) -> UsageRow:
    return UsageRow("d", key_id, f"name of {key_id}", "guide", requests, 1, 10, 0, 5, 0, 0, 0, 7, 9, "rapl", tier)


def test_keys_stand_with_their_class_and_what_was_asked_in_each() -> None:
    keys = [
        Key("k1", "new", "0" * 64, 1, prefix="bl-aaaa"),
        Key("k2", "nightly", "0" * 64, 2, tier=Tier.FLEX, is_admin=True, prefix="bl-bbbb"),
        Key("k3", "shop", "0" * 64, 3, tier=Tier.PRIORITY),
    ]
    rows = [used("k3", "flex", 2), used("k3", "priority", 3), used("k3", "", 1), used("k2", "flex", 4)]
    rows += [used("gone", "default", 9), UsageRow("d", "", "", "guide", 0, 0, 0, 0, 0, 0, 5, 5, 7, 9, "rapl")]
    gone, shop, nightly, new = key_lines(keys, rows)
    assert (gone.name, gone.is_revoked, gone.tier, gone.requests) == ("name of gone", True, "", 9)
    assert (shop.tier, shop.requests, shop.failed, shop.tokens) == ("priority", 6, 3, 45)
    assert [(of.tier, of.requests) for of in shop.classes] == [("priority", 3), ("flex", 2), ("", 1)]
    assert (nightly.tier, nightly.is_admin, nightly.begins, nightly.requests) == ("flex", True, "bl-bbbb", 4)
    assert (new.tier, new.requests, new.classes) == ("default", 0, ())


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0.4 s"), (2, "2 s"), (59.6, "60 s"), (300, "5 min"), (7200, "2 h")]
)
def test_spans(seconds: float, words: str) -> None:
    assert span(round(seconds * NS_PER_S)) == words
