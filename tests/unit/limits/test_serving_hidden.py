"""Rows that hide things: what they may have been, the answer among guesses, and what calibration teaches of them."""

import numpy as np
import pytest

from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.catalogue.models import Models
from baseload.limits.quantization import Quantization
from baseload.limits.serving.features import features_of, launches, weights_of
from baseload.limits.serving.hidden import (
    PACE,
    Beliefs,
    Guess,
    guesses,
    hides,
    least_error,
    measured_s,
    responsibilities,
)
from baseload.limits.serving.points import Point, parse_point
from baseload.limits.serving.predict import Predictor

CATALOGUE, MODELS = read_catalogue(), Models()
ROW = {
    "backend": "trtllm",
    "model_path": "deepseek-ai/DeepSeek-R1",
    "system": "gb200",
    "precision": "fp8",
    "mode": "disagg",
    "isl": "1024",
    "osl": "1024",
    "prefill_tp_size": "8",
    "decode_tp_size": "8",
    "decode_moe_ep_size": "8",
    "concurrency": "16",
}


def point(**cells: object) -> Point:
    return parse_point({**ROW, **{key: str(value) for key, value in cells.items()}}, line=2, name="t.csv")


def guessed(row: Point) -> tuple[Guess, ...]:
    shape = MODELS.find(row.model)[0]
    return guesses(row, CATALOGUE.find(row.system), shape, weights_of(row, shape))


def test_a_row_that_tells_its_workers_is_taken_at_its_word() -> None:
    told = point(prefill_num_workers=1, decode_num_workers=3)
    assert not hides(told)
    assert [(g.point, g.weight) for g in guessed(told)] == [(told, 1.0)]


def test_narrow_groups_stand_side_by_side_and_crowded_or_wide_ones_replicate_attention() -> None:
    few, crowd = guessed(point())[0].point.decode, guessed(point(concurrency=4096))[0].point.decode
    wide = guessed(point(decode_tp_size=32, decode_moe_tp_size=4))[0].point.decode
    assert (few.gpus, few.dp, few.workers) == (8, 1, 4)
    assert (crowd.gpus, crowd.dp, crowd.ep, crowd.workers) == (8, 8, 8, 1)
    assert (wide.gpus, wide.dp, wide.ep, wide.workers) == (32, 32, 32, 1)
    over_nodes = guessed(point(system="h100_sxm", decode_tp_size=16, decode_moe_ep_size=16))[0].point.decode
    assert (over_nodes.gpus, over_nodes.dp, over_nodes.workers) == (16, 1, 2)  # its weights need that many
    grouped = guessed(point(model_path="openai/gpt-oss-120b", concurrency=4096, decode_moe_ep_size=1))
    assert {g.point.decode.dp for g in grouped} == {1}  # heads can be cut: nothing is copied


def test_guesses_share_one_and_only_models_with_draft_layers_may_speculate() -> None:
    for row in (point(), point(concurrency=4096), point(model_path="moonshotai/Kimi-K2.5", precision="fp4")):
        said = guessed(row)
        assert sum(g.weight for g in said) == pytest.approx(1.0)
        assert any(g.speculates for g in said) == (MODELS.find(row.model)[0].draft_layers > 0)
        assert all(not hides(g.point) for g in said)


def test_weights_that_cannot_fit_are_computed_on_as_many_accelerators_as_they_need() -> None:
    bare = point(decode_tp_size=1, prefill_tp_size=1, decode_moe_ep_size=1)
    whole = point(prefill_num_workers=1, decode_num_workers=1)
    said = guessed(bare)[0].point
    assert said.prefill is not None
    assert (said.decode.gpus, said.prefill.gpus) == (8, 8)
    answer, usual = Predictor().predict([bare, whole])
    assert "exceed the memory" in answer.note
    assert "computed on 8" in answer.note
    assert answer.tpot_ms < 2 * usual.tpot_ms
    together = point(mode="agg", tp_size=1)
    assert features_of([together], CATALOGUE, MODELS)["fits"][0] == 0
    assert Predictor().predict([together])[0].tpot_ms < 5 * usual.tpot_ms


def test_the_answer_errs_least_among_modes() -> None:
    one = least_error(np.array([10.0]), np.ones(1), 0.3)
    assert 8.5 < one < 9.8  # below the median: to say too much costs more
    even = least_error(np.array([5.0, 10.0]), np.array([0.5, 0.5]), 0.05)
    assert even == pytest.approx(5.0, rel=0.1)  # not between: that would be wrong twice
    sure = least_error(np.array([5.0, 10.0]), np.array([0.1, 0.9]), 0.05)
    assert sure == pytest.approx(10.0, rel=0.1)


def test_near_rows_of_a_build_teach_which_guess_to_believe() -> None:
    row = point(backend_version="9")
    said = guessed(row)
    fast = np.array([float(g.speculates) for g in said])
    shares = responsibilities(np.where(fast > 0, 0.0, 1.0), np.array([g.weight for g in said]))
    assert shares @ fast > 0.95
    beliefs = Beliefs([(row, said, shares)] * 4)
    near, other = point(backend_version="9", concurrency=24), point(backend_version="10", concurrency=24)
    assert beliefs.weights(near, guessed(near)) @ fast > 0.85
    assert beliefs.weights(other, guessed(other)) @ fast == pytest.approx(Beliefs().weights(other, said) @ fast)


def test_calibration_moves_hidden_rows_to_the_mode_that_was_measured() -> None:
    alone = Predictor()
    rows = [point(concurrency=c, backend_version="9") for c in (8, 16, 32, 64)]
    told = [point(concurrency=c, prefill_num_workers=1, decode_num_workers=4) for c in (8, 16, 32, 64)]
    plain = [said.tpot_ms for said in alone.predict(told)]
    for times in (1.1, 0.55):  # as computed without speculation, and with
        seen = [
            point(concurrency=c, backend_version="9", silicon_tpot_ms=times * ms)
            for c, ms in zip((8, 16, 32, 64), plain, strict=True)
        ]
        answers = alone.calibrate(seen).predict(rows)
        assert all(abs(a.tpot_ms / (times * ms) - 1) < 0.25 for a, ms in zip(answers, plain, strict=True))


def test_a_time_that_may_be_of_two_modes_fits_no_parameter() -> None:
    told = point(silicon_tpot_ms=9, prefill_num_workers=1, decode_num_workers=1)
    tpot_s, _ = measured_s([point(silicon_tpot_ms=9), told], MODELS)
    assert tpot_s.tolist() == [0.0, 0.009]


def test_latent_attention_and_experts_launch_more_than_a_dense_layer() -> None:
    dense, experts, latent = (
        launches(shape, Quantization()) / shape.layers
        for shape in (
            MODELS.find(n)[0] for n in ("meta-llama/Llama-3.1-70B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1")
        )
    )
    assert dense == pytest.approx(1.0)
    assert dense < experts < latent < 2.3


def test_experts_with_a_scale_a_block_launch_more_and_a_dense_model_in_eight_bits_does_not() -> None:
    plain, blocks = Quantization(), Quantization(attention="fp8", dense="fp8", experts="fp8")
    latent, dense = (MODELS.find(n)[0] for n in ("deepseek-ai/DeepSeek-R1", "meta-llama/Llama-3.1-70B"))
    assert launches(latent, blocks) > launches(latent, plain)
    assert launches(dense, blocks) == launches(dense, plain)


def test_a_row_may_say_whether_it_speculates() -> None:
    unsaid, plain, drafts = point(), point(speculation="none"), point(speculation="mtp")
    assert (unsaid.speculates, plain.speculates, drafts.speculates) == (None, False, True)
    assert point(speculation=3).speculates is True
    assert {g.speculates for g in guessed(unsaid)} == {False, True}
    assert {g.speculates for g in guessed(plain)} == {False}
    assert {g.speculates for g in guessed(drafts)} == {True}
    said = Predictor().predict([unsaid, plain, drafts])
    assert said[1].tpot_ms == pytest.approx(PACE * said[2].tpot_ms, rel=0.01)
    assert said[2].tpot_ms <= said[0].tpot_ms < said[1].tpot_ms
    assert said[1].tpot_if_speculating_ms == said[2].tpot_if_speculating_ms == 0.0


def test_a_point_known_to_speculate_calibrates_as_it_would_be_without() -> None:
    told = {"prefill_num_workers": 1, "decode_num_workers": 3}
    plain = point(speculation="none", silicon_tpot_ms=12.0, silicon_ttft_ms=200.0, **told)
    drafts = point(speculation="mtp", silicon_tpot_ms=12.0 / PACE, silicon_ttft_ms=200.0, **told)
    for seen in (plain, drafts):
        after = Predictor().calibrate([seen]).predict([plain, drafts])
        assert after[0].tpot_ms == pytest.approx(PACE * after[1].tpot_ms, rel=0.01)
    of_plain, of_drafts = (Predictor().calibrate([seen]).predict([plain])[0].tpot_ms for seen in (plain, drafts))
    assert of_plain == pytest.approx(of_drafts, rel=0.01)
