"""Serving times: physics that holds whatever is fitted, calibration that finds what made the data, and honesty."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Catalogue, read_catalogue
from baseload.limits.catalogue.models import Models
from baseload.limits.serving.defaults import read_defaults, to_toml
from baseload.limits.serving.features import features_of, weights_of
from baseload.limits.serving.fit import Fitted, fit, priors
from baseload.limits.serving.held_out import figures_of, known_groups, read_points, unseen_accelerator, unseen_model
from baseload.limits.serving.hidden import guesses
from baseload.limits.serving.measured import anomalies, distinct, halves, kendall_tau, sample
from baseload.limits.serving.points import Point, parse_point
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.step import INDEX, PARAMETERS, times_of
from baseload.limits.serving.traits import traits_of

CATALOGUE, MODELS = read_catalogue(), Models()
ROW = {
    "backend": "vllm",
    "model_path": "meta-llama/Llama-3.1-70B",
    "system": "h200_sxm",
    "precision": "fp8",
    "mode": "agg",
    "isl": "1024",
    "osl": "1024",
    "tp_size": "4",
    "concurrency": "16",
}


def point(**cells: object) -> Point:
    return parse_point({**ROW, **{key: str(value) for key, value in cells.items()}}, line=2, name="t.csv")


def made(fitted: Fitted, *, noise: float = 0.0) -> list[Point]:
    """Points whose times the model itself makes, over accelerators, engines, models, layouts and loads."""
    grid = [
        point(system=system, backend=engine, model_path=model, tp_size=tp, concurrency=c, isl=isl, osl=osl)
        for system in ("h100_sxm", "h200_sxm")
        for engine in ("vllm", "sglang")
        for model in ("meta-llama/Llama-3.1-8B", "openai/gpt-oss-120b")
        for tp in (2, 4)
        for c in (1, 8, 64)
        for isl, osl in ((1024, 1024), (8192, 1024), (1024, 4096))
    ]
    times = times_of(features_of(grid, CATALOGUE, MODELS), fitted.theta(traits(grid)))
    wobble = np.exp(noise * np.random.default_rng(1).standard_normal((2, len(grid))))
    rows = zip(grid, times.tpot_s * wobble[0], times.ttft_s * wobble[1], strict=True)
    return [
        parse_point(
            {
                **ROW,
                "backend": p.engine,
                "model_path": p.model,
                "system": p.system,
                "tp_size": str(p.decode.gpus),
                "concurrency": str(p.concurrency),
                "isl": str(p.isl),
                "osl": str(p.osl),
                "silicon_tpot_ms": str(1e3 * tpot),
                "silicon_ttft_ms": str(1e3 * ttft),
            },
            line=i + 2,
            name="made",
        )
        for i, (p, tpot, ttft) in enumerate(rows)
    ]


def traits(points: list[Point]) -> list[tuple[tuple[str, tuple[str, ...]], ...]]:
    return [traits_of(p, MODELS.find(p.model)[0]) for p in points]


def times(points: list[Point], fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    found = times_of(features_of(points, CATALOGUE, MODELS), fitted.theta(traits(points)))
    return found.tpot_s, found.ttft_s


# -- physics -----------------------------------------------------------------------------------------------------


@given(
    c=st.integers(1, 400),
    isl=st.integers(16, 16000),
    osl=st.integers(16, 8000),
    tp=st.sampled_from([1, 2, 4, 8]),
    model=st.sampled_from(
        ["Qwen/Qwen3-32B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3.5-397B-A17B"]
    ),
)
@settings(max_examples=60, deadline=None)
def test_more_work_never_takes_less_time(c: int, isl: int, osl: int, tp: int, model: str) -> None:
    base = {"model_path": model, "tp_size": tp, "system": "gb200", "precision": "fp4"}
    few = point(**base, concurrency=c, isl=isl, osl=osl)
    users = point(**base, concurrency=c * 2, isl=isl, osl=osl)
    longer = point(**base, concurrency=c, isl=isl * 2, osl=osl)
    tpot, ttft = times([few, users, longer], priors())
    room = features_of([few, users, longer], CATALOGUE, MODELS)["waiting"]
    assert (tpot > 0).all()
    assert tpot[1] >= tpot[0]
    assert ttft[1] >= ttft[0]
    if not room.any():  # where the cache overflows, longer prompts leave fewer sequences in a step
        assert tpot[2] >= tpot[0]
        assert ttft[2] >= ttft[0]


def test_no_step_beats_reading_the_weights_at_the_sheets_bandwidth() -> None:
    points = [point(tp_size=tp, concurrency=c) for tp in (2, 4, 8) for c in (1, 16, 128)]
    tpot, _ = times(points, priors())
    weights = MODELS.find(points[0].model)[0].params * 1.0  # FP8; the embedding is not read, which is 3 % of it
    least = np.array([0.96 * weights / p.decode.gpus / 4.8e12 for p in points])
    assert (tpot > least).all()


def test_a_faster_sheet_is_never_slower() -> None:
    tpot, ttft = times([point(system="h100_sxm"), point(system="h200_sxm"), point(system="b200_sxm")], priors())
    assert tpot[0] > tpot[1] > tpot[2]
    assert ttft[0] >= ttft[1] > ttft[2]


def test_few_tokens_touch_few_experts_and_many_touch_all() -> None:
    reads = features_of(
        [point(model_path="deepseek-ai/DeepSeek-R1", tp_size=8, system="b200", concurrency=c) for c in (1, 8, 2000)],
        CATALOGUE,
        MODELS,
    )["decode_expert_read"]
    full = 58 * 256 * 3 * 7168 * 2048 / 8 / 8e12
    assert reads[0] == pytest.approx(full * 8 / 256)
    assert reads[1] == pytest.approx(full * (1 - (1 - 8 / 256) ** 8))
    assert reads[2] == pytest.approx(full, rel=1e-6)


def test_collectives_step_outside_the_fast_domain() -> None:
    features = features_of([point(tp_size=1), point(tp_size=8), point(tp_size=16)], CATALOGUE, MODELS)
    assert features["decode_link"][0] == features["decode_messages"][0] == 0
    assert features["outside"].tolist() == [0, 0, 1]
    inside, across = features["decode_link"][1:]
    assert (
        inside * 2 < across < inside * 9
    )  # of a ninth of the rate, each sends an eighth: what its node summed first


def test_disaggregated_decode_is_not_held_up_by_prefill() -> None:
    apart = {
        "mode": "disagg",
        "prefill_tp_size": 4,
        "decode_tp_size": 4,
        "prefill_num_workers": 1,
        "decode_num_workers": 1,
    }
    tpot, _ = times([point(concurrency=64, isl=8192), point(concurrency=64, isl=8192, **apart)], priors())
    assert tpot[1] < tpot[0]
    more = {**apart, "prefill_num_workers": 8}
    _, relieved = times(
        [point(concurrency=640, isl=8192, **apart), point(concurrency=640, isl=8192, **more)], priors()
    )
    assert relieved[1] < relieved[0]


# -- what columns mean ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "gpus", "dp", "ep"),
    [
        ({"tp_size": 8, "moe_tp_size": 8, "moe_ep_size": 1}, 8, 1, 1),
        ({"tp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, 8, 1, 8),
        ({"tp_size": 1, "attention_dp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, 8, 8, 8),
        ({"tp_size": 4, "attention_dp_size": 4, "moe_tp_size": 1, "moe_ep_size": 16}, 4, 4, 4),
        ({"tp_size": 2, "attention_dp_size": 0, "moe_tp_size": 0, "moe_ep_size": 0}, 2, 1, 1),
        ({"tp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8, "id": "x_c4_tp16_ep2_1"}, 16, 1, 2),
        ({"tp_size": 4, "pp_size": 2}, 8, 1, 1),
    ],
)
def test_parallelism_is_made_sense_of(cells: dict[str, object], gpus: int, dp: int, ep: int) -> None:
    layout = point(**cells).decode
    assert (layout.gpus, layout.dp, layout.ep) == (gpus, dp, ep)


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"isl": "many"}, "`isl` must be a number"),
        ({"isl": "0"}, "`isl` must be a number"),
        ({"tp_size": "1.5"}, "`tp_size` must be a whole number"),
        ({"mode": "mixed"}, "mode must be agg or disagg"),
        ({"model_path": ""}, "`model_path` is empty"),
        ({"concurrency": "nan"}, "`concurrency` must be a number"),
    ],
)
def test_a_bad_cell_names_its_line(cells: dict[str, object], what: str) -> None:
    with pytest.raises(DataError, match=rf"t\.csv line 2: {what}"):
        point(**cells)


def test_missing_columns_are_named() -> None:
    with pytest.raises(DataError, match="the columns model_path, system are missing"):
        read_points(b"backend,isl,osl\nvllm,1,1\n", name="t.csv")
    with pytest.raises(DataError, match="the columns model_path, system are missing"):
        read_points(b"backend,isl,osl\n", name="t.csv")


# -- calibration -----------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_parameters_that_made_the_data() -> None:
    truth = priors().globals_.copy()
    truth[INDEX["launch_s"]] += 0.4
    truth[INDEX["prefill_dense"]] -= 0.2
    points = made(Fitted(truth, {}))
    features = features_of(points, CATALOGUE, MODELS)
    tpot, ttft = np.array([p.tpot_ms for p in points]) / 1e3, np.array([p.ttft_ms for p in points]) / 1e3
    found = fit(features, traits(points), tpot, ttft, start=priors())
    after = times(points, found)
    assert np.abs(np.log(after[0] / tpot)).mean() < 0.01
    before = times(points, priors())
    assert np.abs(np.log(before[0] / tpot)).mean() > 0.05
    elsewhere = [point(model_path="meta-llama/Llama-3.1-8B", tp_size=8, concurrency=c, isl=4096) for c in (2, 32)]
    wanted, _ = times(elsewhere, Fitted(truth, {}))
    guessed, _ = times(elsewhere, priors())
    got, _ = times(elsewhere, found)
    assert (np.abs(np.log(got / wanted)) < 0.3 * np.abs(np.log(guessed / wanted))).all()


def test_without_points_a_fit_stays_where_it_is() -> None:
    empty = features_of([], CATALOGUE, MODELS)
    found = fit(empty, [], np.zeros(0), np.zeros(0), start=priors())
    np.testing.assert_allclose(found.globals_, priors().globals_, atol=1e-9)


def test_calibration_helps_its_own_group_and_leaves_another_nearly_alone() -> None:
    shipped = read_defaults().fitted()
    slower = shipped.globals_ + np.where(np.array(PARAMETERS) == "launch_s", 0.6, 0.0)
    points = made(Fitted(slower, shipped.corrections), noise=0.01)
    mine = [p for p in points if p.system == "h200_sxm" and p.engine == "vllm"]
    calibration = mine[::2]
    rest = mine[1::2]
    before, after = Predictor(), Predictor().calibrate(calibration)

    def error(predictor: Predictor) -> float:
        said = predictor.predict(rest)
        return float(np.mean([abs(s.tpot_ms / p.tpot_ms - 1) for s, p in zip(said, rest, strict=True)]))

    assert error(after) < 0.4 * error(before)
    assert error(after) < 0.05
    far = [point(system="b200_sxm", backend="trtllm", model_path="Qwen/Qwen3-235B-A22B", precision="fp4")]
    moved = after.predict(far)[0].tpot_ms / before.predict(far)[0].tpot_ms
    assert abs(np.log(moved)) < 0.1


def test_every_answer_says_what_it_rests_on_and_how_sure_it_is() -> None:
    points = made(priors())
    mine = [p for p in points if p.system == "h200_sxm" and p.engine == "vllm"]
    calibrated = Predictor().calibrate(mine[:18])
    known, other = calibrated.predict([mine[20], point(system="b200_sxm", backend="trtllm")])
    assert known.basis == "calibrated: 18 points of h200_sxm/vllm/agg"
    assert other.basis == "shipped values for b200_sxm/trtllm; calibrated elsewhere: 18 points"
    assert Predictor().predict([mine[20]])[0].basis == "shipped values for h200_sxm/vllm"
    assert 0 < known.tpot_expected_error < other.tpot_expected_error < 1


def test_what_cannot_fit_is_answered_with_a_flag() -> None:
    tight = point(model_path="deepseek-ai/DeepSeek-R1", tp_size=1, precision="fp8")
    guessed = point(model_path="someone/Big-90B")
    said = Predictor().predict([tight, guessed, point()])
    assert "exceed the memory" in said[0].note
    assert "guessed from its name" in said[1].note
    assert said[2].note == ""
    assert all(0 < s.tpot_ms < 1e6 and 0 < s.ttft_ms < 1e9 for s in said)


def test_two_modes_are_told_where_speculation_is_a_question() -> None:
    draft = point(model_path="deepseek-ai/DeepSeek-R1", tp_size=8, backend_version="unheard-of")
    said = Predictor().predict([draft, point()])
    assert 1.3 < said[0].tpot_ms / said[0].tpot_if_speculating_ms < 1.6
    assert said[1].tpot_if_speculating_ms == 0


def test_a_blank_figure_is_named_and_the_row_answered() -> None:
    blank = msgspec.structs.replace(
        CATALOGUE.find("h200"), bf16_tflops=None, fp8_tflops=None, name="Blank", aliases=()
    )
    predictor = Predictor(catalogue=Catalogue({**CATALOGUE.entries, "blank": blank}))
    rows = [point(system=system) for system in ("blank", "abacus", "NVIDIA-H200-SXM-141GB-HBM3e", "h200_sxm")]
    said = predictor.predict(rows)
    assert said[0].basis.startswith("fallback: the catalogue has no bf16_tflops")
    assert "no accelerator 'abacus'" in said[1].basis
    assert "taken to be H200" in said[2].basis
    assert said[3].basis == "shipped values for h200_sxm/vllm"
    assert said[2].tpot_ms == pytest.approx(said[3].tpot_ms, rel=0.3)
    assert all(0 < s.tpot_ms < 1e4 and 0 < s.ttft_ms < 1e6 for s in said)


def test_what_a_row_leaves_out_is_taken_and_told() -> None:
    row = parse_point({"model_path": "meta-llama/Llama-3.1-8B", "system": "h200"}, line=2, name="made")
    assert (row.isl, row.osl, row.concurrency, row.decode.gpus) == (1024, 1024, 1.0, 1)
    assert "isl not stated" in row.note
    assert "one user" in Predictor().predict([row])[0].note
    odd = point(precision="fp3")
    assert "'fp3' unknown" in odd.note


def apart(total: Point) -> tuple[int, int, int]:
    """Accelerators of a decoder, decoders, and accelerators that prefill, as a total is taken apart."""
    shape = Models().find(total.model)[0]
    found = guesses(total, read_catalogue().find(total.system), shape, weights_of(total, shape))[0].point
    assert found.prefill is not None
    return found.decode.gpus, found.decode.workers, found.prefill.gpus * found.prefill.workers


def test_words_and_numbers_of_tables_are_read_as_written() -> None:
    row = point(mode="Disaggregated", isl="1,024", prefill_tp_size=4, decode_tp_size=8)
    assert (row.mode, row.isl, row.decode.gpus) == ("disagg", 1024, 8)
    with pytest.raises(DataError, match="mode must be agg or disagg, not 'both'"):
        point(mode="both")


def test_what_stands_in_for_something_else_is_expected_to_err_more() -> None:
    known, chip, model = Predictor().predict(
        [point(), point(system="some_chip_of_2031"), point(model_path="nobody/Unknown-9B")]
    )
    assert chip.tpot_expected_error > known.tpot_expected_error + 0.03
    assert model.tpot_expected_error > known.tpot_expected_error + 0.03


def test_a_total_of_several_workers_is_taken_apart() -> None:
    total = point(
        model_path="deepseek-ai/DeepSeek-R1", tp_size=36, moe_tp_size=36, system="gb200", concurrency=64,
        isl=1024, osl=1024, gemm_quant_mode="nvfp4", moe_quant_mode="nvfp4",
    )  # fmt: skip
    assert (total.decode.gpus, total.decode.workers, total.mode) == (8, 4, "agg")
    assert total.prefill is not None
    assert apart(total) == (8, 4, 4)
    crowded = msgspec.structs.replace(total, concurrency=1075.0)
    assert apart(crowded) == (32, 1, 4)  # one wide group
    prompts = msgspec.structs.replace(crowded, isl=8192)
    assert apart(prompts) == (16, 1, 20)  # long prompts take more of the total
    wide = point(model_path="deepseek-ai/DeepSeek-R1", tp_size=32, moe_ep_size=32)
    assert (wide.decode.gpus, wide.decode.workers) == (32, 1)


def test_defaults_survive_their_file() -> None:
    shipped = read_defaults()
    assert "distinct points" in shipped.basis
    again = read_defaults(
        to_toml(shipped.fitted(), basis=shipped.basis, tpot=shipped.tpot, ttft=shipped.ttft).encode()
    )
    np.testing.assert_allclose(again.fitted().globals_, shipped.fitted().globals_, atol=1e-4)
    assert again.corrections.keys() == shipped.corrections.keys()


# -- judging -------------------------------------------------------------------------------------------------------


def test_copies_of_a_measurement_count_once_and_never_cross_a_split() -> None:
    points = made(priors())
    copies = [*points, *points[:10]]
    assert len(distinct(copies)) == len(points)
    develop, held = halves(points)
    assert sorted(develop + held) == list(range(len(points)))
    groups = [{(points[i].system, points[i].engine, points[i].family) for i in half} for half in (develop, held)]
    assert not groups[0] & groups[1]
    chosen = sample(points, per_group=5)
    assert len(chosen) == 5 * 4
    assert chosen == sample(points, per_group=5)
    assert chosen != sample(points, per_group=5, seed=2)


def test_impossible_rows_are_anomalies() -> None:
    rows = [
        point(silicon_tpot_ms=0.5),  # 70 GB on four in half a millisecond: faster than memory
        point(silicon_tpot_ms=15),
        point(model_path="deepseek-ai/DeepSeek-R1", tp_size=2, silicon_tpot_ms=50),
    ]
    assert anomalies(rows, features_of(rows, CATALOGUE, MODELS)).tolist() == [True, False, True]


def test_kendalls_tau() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert kendall_tau(a, a) == 1
    assert kendall_tau(a, -a) == -1
    assert kendall_tau(a, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(4 / 6)


def test_the_examination_runs_whole_on_made_points() -> None:
    """The model made the points, so calibrated it must be near, and uncalibrated not absurd."""
    points, predictor = made(priors(), noise=0.02), Predictor()
    known = figures_of(known_groups(points, predictor), predictor)
    assert known.points > 0
    assert known.tpot_mean < 0.06
    unseen = figures_of(unseen_accelerator(points, predictor), predictor)
    assert unseen.tpot_mean < 0.2  # of which a tenth is caution: what was never measured is answered low
    assert figures_of(unseen_model(points, predictor), predictor).tpot_mean < 0.5
