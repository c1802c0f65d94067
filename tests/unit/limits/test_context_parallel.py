"""Context parallel: nothing at one rank, nearly 1 / cp on long prompts, and links that bind in the end."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.limits.catalogue.accelerators import read_catalogue, read_fabric
from baseload.limits.catalogue.models import Models
from baseload.limits.collectives import fabric_of
from baseload.limits.context_parallel import gathered, merged, prefill
from baseload.limits.quantization import of_formats
from baseload.limits.serving.features import counts_of
from baseload.limits.serving.points import Layout, parse_point
from baseload.limits.serving.predict import Predictor
from baseload.limits.training.step import Parallel, Rates, cost_of, seconds
from baseload.limits.training.work import work_of

CATALOGUE = read_catalogue()
H100 = CATALOGUE.find("h100_sxm")
FABRIC = fabric_of(H100, read_fabric())
LLAMA = Models().find("meta-llama/Meta-Llama-3.1-70B")[0]
LONG = 131_072


def test_one_rank_exchanges_nothing() -> None:
    for said in (gathered(LLAMA, FABRIC, cp=1, tokens=LONG), merged(LLAMA, FABRIC, cp=1, rows=8)):
        assert (said.wire_s, said.messages, said.far_messages) == (0.0, 0.0, 0.0)
    alone = prefill(LLAMA, H100, FABRIC, tokens=LONG)
    assert alone.total_s == alone.matmul_s + alone.attention_s
    pairs = 80 * 4 * 64 * 128 * LONG**2 / 2
    assert alone.attention_s == pytest.approx(pairs / 989.4e12, rel=0.001)


def test_a_long_prompt_falls_nearly_as_the_ranks_until_the_links_bind() -> None:
    alone = prefill(LLAMA, H100, FABRIC, tokens=LONG, tensor=8).total_s
    for cp, share in ((2, 0.95), (4, 0.9), (8, 0.85), (16, 0.75)):
        assert share * cp < alone / prefill(LLAMA, H100, FABRIC, tokens=LONG, tensor=8, cp=cp).total_s <= cp
    short = prefill(LLAMA, H100, FABRIC, tokens=512, tensor=8).total_s
    assert short / prefill(LLAMA, H100, FABRIC, tokens=512, tensor=8, cp=16).total_s < 8  # mostly messages by then
    wide = prefill(LLAMA, H100, FABRIC, tokens=LONG, tensor=8, cp=4096)
    assert wide.exchange_s > wide.matmul_s + wide.attention_s


def test_a_ring_hides_behind_attention_what_a_gather_shows() -> None:
    ring = prefill(LLAMA, H100, FABRIC, tokens=LONG, tensor=8, cp=8, ring=True)
    gather = prefill(LLAMA, H100, FABRIC, tokens=LONG, tensor=8, cp=8)
    assert ring.exchange_s == 0.0 < gather.exchange_s
    bound = prefill(LLAMA, H100, FABRIC, tokens=2048, tensor=8, cp=8, ring=True)
    assert 0.0 < bound.exchange_s < prefill(LLAMA, H100, FABRIC, tokens=2048, tensor=8, cp=8).exchange_s


@given(st.sampled_from([2, 3, 4, 8, 16, 64]), st.integers(1, 10**6))
def test_a_gather_moves_what_the_other_ranks_hold(cp: int, tokens: int) -> None:
    said = gathered(LLAMA, FABRIC, cp=cp, tokens=tokens, tensor=8)
    bytes_each = tokens * 80 * 2 * 8 * 128 * 2 / 8 * (cp - 1) / cp
    assert said.wire_s == pytest.approx(bytes_each / 50e9, rel=1e-6)  # one rank a node: 400 Gb/s
    assert said.far_messages == said.messages == 80


def test_inside_the_fast_domain_the_fast_links_carry_it() -> None:
    near, far = (gathered(LLAMA, FABRIC, cp=4, tokens=LONG, tensor=tensor) for tensor in (2, 8))
    assert near.far_messages == 0.0 < far.far_messages
    assert near.wire_s < far.wire_s


def test_windows_and_states_exchange_little() -> None:
    models = Models()
    half = gathered(models.find("gpt-oss-120b")[0], FABRIC, cp=8, tokens=LONG)
    full = 36 * 2 * 8 * 64 * 2 * LONG * 7 / 8 / 450e9
    assert half.wire_s == pytest.approx(full / 2, rel=0.15)  # every other layer sees 128 keys
    states = gathered(models.find("Qwen3.5-397B-A17B")[0], FABRIC, cp=8, tokens=LONG)
    longer = gathered(models.find("Qwen3.5-397B-A17B")[0], FABRIC, cp=8, tokens=2 * LONG)
    assert states.wire_s < longer.wire_s < 2 * states.wire_s


def test_training_with_context_parallel_is_as_before_at_one_and_faster_on_more() -> None:
    work = work_of(Models().find("meta-llama/Meta-Llama-3.1-8B")[0], tokens=LONG)

    def step(context: int) -> float:
        parallel = Parallel(tensor=8, context=context)
        return seconds(cost_of(work, parallel, H100, FABRIC, batch=8), Rates()).total_s

    assert step(1) == seconds(cost_of(work, Parallel(tensor=8), H100, FABRIC, batch=8), Rates()).total_s
    assert step(4) < step(2) < step(1)
    assert step(1) / step(4) > 2.5


def _point(**cells: str) -> dict[str, str | None]:
    row = {"model_path": "meta-llama/Llama-3.1-70B", "system": "h100_sxm", "backend": "vllm", "tp_size": "8"}
    return {**row, "isl": str(LONG), "osl": "64", "concurrency": "1", **cells}


def test_serving_counts_are_as_before_at_one_and_cut_on_more() -> None:
    q = of_formats("bf16", "bf16")
    plain = counts_of(LLAMA, q, H100, Layout(gpus=8))
    assert counts_of(LLAMA, q, H100, Layout(gpus=8, cp=1)) == plain
    cut = counts_of(LLAMA, q, H100, Layout(gpus=32, cp=4))
    assert cut.kv_cut == 4 * plain.kv_cut
    assert cut.attention[0].read_s == pytest.approx(plain.attention[0].read_s / 4)
    assert cut.dense_read_s == plain.dense_read_s  # every rank keeps the weights whole
    assert cut.weight_bytes == plain.weight_bytes
    assert cut.messages > plain.messages
    assert cut.outside


def test_cp_size_is_read_and_a_long_prompt_is_sooner() -> None:
    one, four = (parse_point(_point(**more), line=2, name="t") for more in ({}, {"cp_size": "4"}))
    assert (one.decode.gpus, one.decode.cp) == (8, 1)
    assert (four.decode.gpus, four.decode.cp) == (32, 4)
    predictor = Predictor()
    alone, cut = predictor.predict([one, four])
    assert 2.0 < alone.ttft_ms / cut.ttft_ms <= 4.0
    short = [parse_point(_point(isl="128", **more), line=2, name="t") for more in ({}, {"cp_size": "4"})]
    near, far = predictor.predict(short)
    assert near.ttft_ms / far.ttft_ms < 1.5  # weights are read whole by every rank, and messages added


def test_predict_serving_takes_the_column(tmp_path: Path) -> None:
    rows = [_point(), _point(cp_size="1"), _point(cp_size="2")]
    points, out = tmp_path / "points.csv", tmp_path / "out.csv"
    columns = [*rows[1]]
    lines = [",".join(columns), *(",".join(row.get(name) or "" for name in columns) for row in rows)]
    points.write_text("\n".join(lines) + "\n")
    told = CliRunner().invoke(app, ["predict", "serving", str(points), "-o", str(out)])
    assert told.exit_code == 0, told.output
    blank, one, two = csv.DictReader(out.read_text().splitlines())
    assert blank["ttft_ms"] == one["ttft_ms"]
    assert float(two["ttft_ms"]) < float(one["ttft_ms"])
