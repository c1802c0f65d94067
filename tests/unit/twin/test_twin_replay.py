"""Recorded requests replayed: what is read, who waits for what, and that calibration finds what a recording hides."""

import csv
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.domain.errors import DataError
from baseload.limits.serving.predict import Predictor
from baseload.twin.recorded import EngineSettings, Recorded, parse_engine, parse_requests
from baseload.twin.replay import Replay, Replayed, agreement, tpot_ms
from baseload.twin.replay_fit import Known, Run, as_planned, calibrated, cost_of, shipped
from baseload.twin.replay_step import USUAL, WIDTHS, Load

PREDICTOR = Predictor()
SHAPE = PREDICTOR.models.find("meta-llama/Llama-3.1-8B")[0]
MOE = PREDICTOR.models.find("Qwen/Qwen3-30B-A3B")[0]
SETTINGS = EngineSettings(max_seqs=16, max_step_tokens=512, max_context=8192)


def requests(count: int, *, gap_ns: int = 50_000_000, prompt: int = 300, output: int = 40) -> list[Recorded]:
    return [Recorded(f"r{i}", i * gap_ns, prompt + 7 * i, output + i % 5) for i in range(count)]


def run_of(settings: EngineSettings, asked: list[Recorded], known: Known | None = None) -> list[Replayed]:
    run = Run(asked, settings, MOE if settings.dp > 1 else SHAPE)
    return Replay(asked, settings, cost_of(run, "h200", PREDICTOR, known or {})).run()


def recorded(asked: list[Recorded], replayed: list[Replayed]) -> list[Recorded]:
    return [
        msgspec.structs.replace(
            r, ttft_ms=(p.first_ns - p.queued_ns) / 1e6, tpot_ms=tpot_ms(r, p), e2e_ms=(p.last_ns - p.queued_ns) / 1e6
        )
        for r, p in zip(asked, replayed, strict=True)
    ]


def test_one_request_alone_takes_its_steps() -> None:
    asked = [Recorded("a", 0, 1000, 11)]
    cost = cost_of(Run(asked, SETTINGS, SHAPE), "h200", PREDICTOR, {})
    replay = Replay(asked, SETTINGS, cost)
    (only,) = replay.run()
    assert replay.steps == 2 + 10  # two chunks of a prompt, the second of which gives the first token
    chunks = cost.step_ns([Load(512, 512 * 512 // 2, 0, 0, 1)])
    chunks += cost.step_ns([Load(488, 488 * 512 + 488 * 488 // 2, 0, 0, 1)])
    assert only.first_ns == chunks
    assert only.last_ns - only.first_ns == sum(cost.step_ns([Load(0, 0, 1, 1000 + k, 0)]) for k in range(1, 11))


def test_who_comes_meanwhile_waits_a_step_longer_where_steps_are_planned_ahead() -> None:
    asked = [Recorded("a", 0, 300, 200), Recorded("b", 100_000_000, 300, 20)]
    plain = run_of(SETTINGS, asked)[1]
    ahead = run_of(msgspec.structs.replace(SETTINGS, ahead=True), asked)[1]
    assert plain.queued_ns == ahead.queued_ns
    step = cost_of(Run(asked, SETTINGS, SHAPE), "h200", PREDICTOR, {}).step_ns([Load(0, 0, 1, 320, 0)])
    assert 0.5 * step < ahead.first_ns - plain.first_ns < 1.5 * step


def test_few_slots_make_requests_wait() -> None:
    asked = requests(30, gap_ns=1_000_000)
    narrow = run_of(msgspec.structs.replace(SETTINGS, max_seqs=2), asked)
    wide = run_of(SETTINGS, asked)
    assert narrow[-1].first_ns > 2 * wide[-1].first_ns
    assert all(p.last_ns > p.first_ns > p.queued_ns for p in narrow)


def test_what_can_never_fit_is_refused_and_the_rest_goes_on() -> None:
    asked = [Recorded("a", 0, 9000, 5), Recorded("b", 0, 100, 5)]
    first, second = run_of(SETTINGS, asked)
    assert first.refused
    assert not second.refused


def test_replicas_of_attention_share_the_load() -> None:
    asked = requests(24, gap_ns=1_000_000)
    one = run_of(msgspec.structs.replace(SETTINGS, dp=2, ep=2, max_seqs=4), asked)
    four = run_of(msgspec.structs.replace(SETTINGS, dp=4, ep=4, max_seqs=4), asked)
    assert max(p.last_ns for p in four) < max(p.last_ns for p in one)


def test_agreement_is_nil_with_itself_and_tells_a_slower_recording() -> None:
    asked = requests(20)
    replayed = run_of(SETTINGS, asked)
    same = agreement(recorded(asked, replayed), replayed)
    assert same is not None
    assert (same.tpot, same.e2e, same.ttft, same.e2e_p99) == pytest.approx((0, 0, 0, 0), abs=1e-9)
    slower = [msgspec.structs.replace(r, e2e_ms=2 * r.e2e_ms) for r in recorded(asked, replayed)]
    other = agreement(slower, replayed)
    assert other is not None
    assert other.e2e == pytest.approx(-0.5)
    assert agreement(asked, replayed) is None


def test_a_place_is_given_away_a_step_later_where_steps_are_planned_ahead() -> None:
    asked = [Recorded("a", 0, 100, 20), Recorded("b", 0, 100, 40), Recorded("c", 1, 100, 20)]
    narrow = msgspec.structs.replace(SETTINGS, max_seqs=2)
    plain = run_of(narrow, asked)
    ahead = run_of(msgspec.structs.replace(narrow, ahead=True), asked)
    alone = cost_of(Run(asked, SETTINGS, SHAPE), "h200", PREDICTOR, {}).step_ns([Load(0, 0, 1, 120, 0)])
    longer = (ahead[2].first_ns - ahead[0].last_ns) - (plain[2].first_ns - plain[0].last_ns)
    assert longer == pytest.approx(alone, rel=0.02)
    together = [Recorded("a", 0, 100, 20), Recorded("b", 0, 100, 20), Recorded("c", 1, 100, 20)]
    after = run_of(msgspec.structs.replace(narrow, ahead=True), together)
    assert after[0].last_ns == after[1].last_ns < after[2].first_ns  # nobody runs, and the next still comes in


def test_replicas_without_experts_do_not_wait_for_each_other() -> None:
    asked = [Recorded("short", 0, 100, 50), Recorded("long", 0, 6000, 50)]
    settings = msgspec.structs.replace(SETTINGS, dp=2)
    dense = Replay(asked, settings, cost_of(Run(asked, settings, SHAPE), "h200", PREDICTOR, {})).run()
    assert dense[0] == run_of(SETTINGS, asked[:1])[0]
    assert dense[1] == run_of(SETTINGS, asked[1:])[0]
    moe = Run(asked, msgspec.structs.replace(settings, ep=2), MOE)
    together = Replay(asked, moe.settings, cost_of(moe, "h200", PREDICTOR, {})).run()
    alone = Replay(asked[:1], moe.settings, cost_of(moe, "h200", PREDICTOR, {})).run()
    assert together[0].last_ns > 1.2 * alone[0].last_ns


def test_a_step_costs_by_graphs_prompts_and_heads() -> None:
    cost = cost_of(Run([], SETTINGS, SHAPE), "h200", PREDICTOR, {})
    rows = [cost.step_ns([Load(0, 0, n, 1000, 0)]) for n in range(1, 65)]
    assert rows == sorted(rows)
    eager = msgspec.structs.replace(SETTINGS, captured=0)
    slow = cost_of(Run([], eager, SHAPE), "h200", PREDICTOR, {}).step_ns([Load(0, 0, 8, 1000, 0)])
    assert slow - rows[7] == pytest.approx(cost.counts.layers * USUAL["eager_s"] * 1e9, abs=2)
    beside = cost.step_ns([Load(100, 5000, 64, 90_000, 1)]) - cost.step_ns([Load(100, 5000, 64, 10_000, 1)])
    alone = cost.step_ns([Load(0, 0, 64, 90_000, 0)]) - cost.step_ns([Load(0, 0, 64, 10_000, 0)])
    assert beside == pytest.approx(4 ** USUAL["regroup"] * alone, rel=1e-3)  # 32 heads share 8 cached ones
    assert cost_of(Run([], SETTINGS, SHAPE), "b200", PREDICTOR, {}).beside == 1.0
    narrow = msgspec.structs.replace(SETTINGS, kv_bytes=1.0)
    assert cost_of(Run([], narrow, SHAPE), "h200", PREDICTOR, {}).kv_tokens == pytest.approx(
        2 * cost.kv_tokens, rel=1e-3
    )
    two = cost_of(Run([], msgspec.structs.replace(SETTINGS, dp=2, ep=2), MOE), "h200", PREDICTOR, {})
    nine, none = Load(0, 0, 9, 9000, 0), Load(0, 0, 0, 0, 0)
    assert two.step_ns([nine, none]) == two.step_ns([none, nine]) > two.step_ns([none, Load(0, 0, 2, 9000, 0)])


def test_calibration_finds_a_slower_accelerator() -> None:
    """A recording made by the model with other efficiencies: another model on it is then predicted too."""
    hidden = {"h200_sxm/vllm": {"kv_read": -0.12, "dense_read": -0.1, "host_s": 0.4}}
    asked = requests(60, gap_ns=5_000_000, prompt=900, output=60)
    made = recorded(asked, run_of(SETTINGS, asked, hidden))
    found = calibrated([Run(made, SETTINGS, SHAPE)], "h200", PREDICTOR, {})
    after = agreement(made, run_of(SETTINGS, made, found))
    before = agreement(made, run_of(SETTINGS, made))
    assert before is not None
    assert after is not None
    assert abs(before.tpot) > 0.05
    assert abs(after.tpot) < 0.015
    assert abs(after.e2e) < 0.015
    both = msgspec.structs.replace(SETTINGS, dp=2, ep=2)
    other = agreement(recorded(asked, run_of(both, asked, hidden)), run_of(both, asked, found))
    assert other is not None
    assert abs(other.tpot) < 0.04
    assert calibrated([Run(asked, SETTINGS, SHAPE)], "h200", PREDICTOR, found) is found  # nothing was measured
    planned = as_planned(PREDICTOR, "h200", [Run(made, SETTINGS, SHAPE)], found)
    assert planned.fitted.corrections["system=h200_sxm,engine=vllm", "kv_read"] > 0.2


def test_shipped_values_are_of_known_parameters_and_plausible() -> None:
    assert set(WIDTHS) == set(USUAL)
    for word, moved in shipped().items():
        accelerator, engine = word.split("/")
        assert PREDICTOR.chips.identifier(accelerator) == accelerator
        assert engine in ("vllm", "sglang")
        assert all(abs(by) <= 4 * WIDTHS[name] for name, by in moved.items())


def test_settings_are_read_under_their_usual_names() -> None:
    kwargs = {"tensor_parallel_size": 2, "data_parallel_size": 2, "enable_expert_parallel": True, "max_num_seqs": 9}
    meta = {"vllm_version": "0.19.0", "engine_kwargs": {**kwargs, "model": "a/b", "dtype": "fp8"}}
    found = parse_engine(json.dumps(meta).encode(), name="m", memory_gb=80)
    assert (found.tp, found.dp, found.ep, found.max_seqs, found.max_step_tokens) == (2, 2, 4, 9, 8192)
    assert (found.ahead, found.weights, found.model) == (True, "fp8", "a/b")
    old = parse_engine(b'{"vllm_version": "0.9.1", "max_num_batched_tokens": 2048}', name="m", memory_gb=24)
    assert (old.ahead, old.max_seqs, old.max_step_tokens) == (False, 256, 2048)
    assert (found.captured, old.captured, old.kv_bytes) == (18, 512, 0.0)
    bare = parse_engine(b'{"enforce_eager": true, "kv_cache_dtype": "fp8_e4m3"}', name="m", memory_gb=80)
    assert (bare.captured, bare.kv_bytes) == (0, 1.0)
    other = parse_engine(
        b'{"sglang_version": "0.5", "tp_size": 4, "max_running_requests": 7}', name="m", memory_gb=80
    )
    assert (other.engine, other.tp, other.max_seqs) == ("sglang", 4, 7)


def test_requests_are_read_and_bad_lines_named() -> None:
    good = b'{"request_id": "x", "input_toks": 5, "output_toks": 3, "arrival_time": 100.5}\n\n'
    later = (
        b'{"prompt_tokens": 5, "output_tokens": 3, "arrival_time": 101.0, "queued_ts": 7.0, "first_token_ts": 7.5, '
    )
    later += b'"last_token_ts": 8.5}'
    first, second = parse_requests(good + later, name="r.jsonl")
    assert (first.arrival_ns, second.arrival_ns) == (0, 500_000_000)
    assert (second.ttft_ms, second.tpot_ms, second.e2e_ms) == (500, 500, 1500)
    for bad in (b"[1]", b'{"input_toks": 1}', b'{"input_toks": 1, "output_toks": 1}', b""):
        with pytest.raises(DataError, match=r"r\.jsonl"):
            parse_requests(bad, name="r.jsonl")


def test_the_command_writes_a_row_a_request(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"request_id": f"q{i}", "input_toks": int(rng.integers(50, 400)), "output_toks": 12, "arrival_time": 0.1 * i}
        for i in range(25)
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "meta.json").write_text('{"vllm_version": "0.19.0", "engine_kwargs": {"max_num_seqs": 8}}')
    shape = {"hidden_size": 1024, "vocab_size": 1000, "num_hidden_layers": 4, "intermediate_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "num_attention_heads": 8}))
    out = tmp_path / "out.csv"
    args = ["simulate", "replay", str(tmp_path / "requests.jsonl"), "--model", str(tmp_path / "config.json")]
    args += ["--engine", str(tmp_path / "meta.json"), "--accelerator", "h100", "-o", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert [row["request_id"] for row in written] == [row["request_id"] for row in rows]
    assert all(0 < float(row["ttft_ms"]) < float(row["e2e_ms"]) for row in written)
    bad = CliRunner().invoke(app, [*args[:2], str(tmp_path / "none.jsonl"), *args[3:]])
    assert bad.exit_code != 0
    assert isinstance(bad.exception, DataError)


def test_a_recording_with_times_of_one_kind_is_compared_in_that_one() -> None:
    asked = requests(5)
    replayed = run_of(EngineSettings(), asked)
    whole = [msgspec.structs.replace(r, ttft_ms=0.0, tpot_ms=0.0) for r in recorded(asked, replayed)]
    found = agreement(whole, replayed)
    assert found is not None
    assert found.e2e_each == pytest.approx(0.0, abs=1e-9)
    assert found.ttft_each == found.tpot_each == 0.0


@pytest.mark.parametrize(
    "setting",
    [
        '"max_num_seqs": -5',
        '"tensor_parallel_size": 1e30',
        '"gpu_memory_utilization": 7',
        '"gpu_memory_utilization": 0',
    ],
)
def test_settings_that_no_engine_takes_are_refused_by_name(setting: str) -> None:
    with pytest.raises(DataError, match=setting.split('"')[1]):
        parse_engine(f'{{"engine_kwargs": {{{setting}}}}}'.encode(), name="meta.json", memory_gb=80.0)
    assert parse_engine(b'{"max_num_seqs": -1}', name="meta.json", memory_gb=80.0).max_seqs == 1024


def test_settings_written_as_text_are_numbers_and_a_byte_order_mark_is_none_of_the_text() -> None:
    text = b'\xef\xbb\xbf{"tensor_parallel_size": "2", "gpu_memory_utilization": "0.8", "max_model_len": "auto"}'
    found = parse_engine(text, name="meta.json", memory_gb=80.0)
    assert (found.tp, found.memory_share, found.max_context) == (2, 0.8, 1 << 30)
    with pytest.raises(DataError, match="`tensor_parallel_size` is 'two', not a number"):
        parse_engine(b'{"tensor_parallel_size": "two"}', name="meta.json", memory_gb=80.0)
    line = b'\xef\xbb\xbf{"arrival_time": 0, "input_toks": 5, "output_toks": 2}\r\n'
    assert len(parse_requests(line, name="r.jsonl")) == 1
