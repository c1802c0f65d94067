"""Training steps: counted work, layouts, memory, calibration on synthetic jobs, and plans."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, read_catalogue, read_fabric
from baseload.limits.catalogue.models import Models
from baseload.limits.collectives import Fabric, fabric_of
from baseload.limits.goals import Row as Figure
from baseload.limits.ridge import read_shipped, to_toml, unfitted
from baseload.limits.training.benchmarks import benchmark_of
from baseload.limits.training.fit import FORM, rates_of, table, time
from baseload.limits.training.held_out import score
from baseload.limits.training.plan import Job, Terms, fewest, plan
from baseload.limits.training.points import Row, read_rows, whole_system
from baseload.limits.training.predict import Predictor, added
from baseload.limits.training.search import layouts
from baseload.limits.training.step import Parallel, Rates, cost_of, memory_of, seconds
from baseload.limits.training.work import Recompute, Work, work_of

MODELS = Models()
H100 = read_catalogue().find("h100")


@pytest.fixture(scope="module")
def dense() -> Work:
    return work_of(MODELS.find("llama-3.1-8b")[0], tokens=8192)


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return fabric_of(H100, read_fabric())


def test_flops_of_a_sample_are_six_times_its_parameters_and_its_pairs(dense: Work) -> None:
    weights = 7.5e9 * 6 * 8192  # Llama 3.1 8B without its embedding
    pairs = 3 * 32 * 4 * 4096 * 8192**2 / 2
    assert dense.training_flops == pytest.approx(weights + pairs, rel=0.02)
    lora = work_of(MODELS.find("llama-2-70b")[0], tokens=8192, lora_rank=16)
    assert lora.training_flops == pytest.approx(4 * 69e9 * 8192 + 3 * lora.attention_flops, rel=0.02)
    assert lora.trainable < 2e-3 * lora.params
    moe = work_of(MODELS.find("Qwen/Qwen3-30B-A3B")[0], tokens=4096)
    assert moe.training_flops < 0.15 * 6 * moe.params * 4096
    with pytest.raises(DataError):
        work_of(MODELS.find("llama-3.1-8b")[0], tokens=0)


def test_more_accelerators_never_take_longer_and_twice_the_batch_takes_longer(dense: Work, fabric: Fabric) -> None:
    def best(accelerators: int, batch: int) -> float:
        return layouts(dense, H100, fabric, accelerators=accelerators, batch=batch)[0].step.total_s

    times = [best(n, 128) for n in (8, 16, 32, 64, 128)]
    assert times == sorted(times, reverse=True)
    assert best(64, 256) > 1.5 * best(64, 128)


def test_parts_of_a_step_answer_to_what_drives_them(dense: Work, fabric: Fabric) -> None:
    def step(parallel: Parallel, batch: int = 64):  # type: ignore[no-untyped-def]
        return seconds(cost_of(dense, parallel, H100, fabric, batch=batch), Rates())

    alone, tensor = step(Parallel(data=64)), step(Parallel(data=8, tensor=8))
    assert alone.traffic_s == 0 < tensor.traffic_s
    assert step(Parallel(data=8, tensor=4, pipeline=2)).bubble_s > 0
    assert step(Parallel(data=8, tensor=4, pipeline=2, chunks=4)).bubble_s == pytest.approx(
        step(Parallel(data=8, tensor=4, pipeline=2)).bubble_s / 4, rel=0.1
    )
    full = step(Parallel(data=64, recompute=Recompute.FULL))
    assert full.math_s == pytest.approx(alone.math_s * 4 / 3)
    assert step(Parallel(data=16, context=4)).sync_s > 0
    assert alone.total_s == pytest.approx(sum(getattr(alone, name) for name in alone.__struct_fields__))
    eight = cost_of(dense, Parallel(data=8), H100, fabric, batch=8)
    sixteen = cost_of(dense, Parallel(data=16), H100, fabric, batch=16)
    assert eight.sync_far_messages == 0 < sixteen.sync_far_messages


def test_more_accelerators_wait_longer_for_the_slowest(dense: Work, fabric: Fabric) -> None:
    def wait_s(data: int) -> float:
        return seconds(cost_of(dense, Parallel(data=data), H100, fabric, batch=data), Rates(tail_s=2e-3)).wait_s

    assert wait_s(1) == 0.0
    assert wait_s(8) == pytest.approx(2e-3 * np.sqrt(2 * np.log(8)))
    draws = np.random.default_rng(1).normal(size=(400, 512)).max(axis=1).mean()  # what the formula stands for
    assert wait_s(512) == pytest.approx(2e-3 * draws, rel=0.2)
    assert wait_s(8192) > wait_s(512)


def test_low_bits_are_faster_where_the_chip_has_them(dense: Work, fabric: Fabric) -> None:
    b200 = read_catalogue().find("b200")
    cost = {
        form: cost_of(dense, Parallel(data=8), b200, fabric, batch=8, form=form).math_s
        for form in ("bf16", "fp8", "fp4")
    }
    assert cost["bf16"] == pytest.approx(2 * cost["fp8"]) == pytest.approx(4 * cost["fp4"])
    a100 = read_catalogue().find("a100")
    assert (
        cost_of(dense, Parallel(data=8), a100, fabric, batch=8, form="fp8").math_s
        == cost_of(dense, Parallel(data=8), a100, fabric, batch=8, form="bf16").math_s
    )


def test_memory_falls_with_every_kind_of_cut(dense: Work) -> None:
    base = memory_of(dense, Parallel(data=8, recompute=Recompute.NONE), H100, batch=8)
    assert not base.fits
    assert base.weights == pytest.approx(2 * dense.params)
    for cut in (Parallel(data=8, tensor=2), Parallel(data=8, context=2), Parallel(data=8, pipeline=2)):
        assert memory_of(dense, replace(cut, recompute=Recompute.NONE), H100, batch=8).used < base.used
    assert memory_of(dense, Parallel(data=64, recompute=Recompute.NONE), H100, batch=64).optimizer < base.optimizer
    full = memory_of(dense, Parallel(data=8, recompute=Recompute.FULL), H100, batch=8)
    assert full.activations < base.activations / 5


def test_what_does_not_fit_is_said_with_figures(fabric: Fabric) -> None:
    giant = work_of(MODELS.find("llama-3.1-405b")[0], tokens=8192)
    with pytest.raises(DataError, match=r"does not fit 8 accelerators of H100.* needs \d+ GB of 74 GB"):
        layouts(giant, H100, fabric, accelerators=8, batch=8)
    with pytest.raises(DataError, match="No layout spreads 7 samples over 16 accelerators"):
        layouts(replace(giant, layers=0), H100, fabric, accelerators=16, batch=7)
    assert layouts(giant, H100, fabric, accelerators=512, batch=512)[0].parallel.split >= 16


HEAD = (
    "accelerator,accelerators_total,benchmark,global_batch_size,seq_len,submitter,framework,median_logged_step_time,"
)
HEAD += "median_logged_throughput,time_to_train_min_olympic,samples_to_converge_last_run\n"


def test_rows_are_read_with_their_units() -> None:
    text = HEAD + "NVIDIA H100,8,llama31_8b,16,8192,me,NeMo 25.09,0.5,,10,1600\nNVIDIA H100,8,x,320,,me,,,100,,\n"
    first, second = read_rows(text.encode(), name="t.csv")
    assert (first.step_s, first.release, first.train_s, first.samples) == (0.5, "25.09", 600, 1600)
    assert second.step_s == pytest.approx(3.2)
    with pytest.raises(DataError, match=r"t\.csv, line 2: `global_batch_size` is 'x'"):
        read_rows(b"accelerator,accelerators_total,benchmark,global_batch_size\na,1,b,x\n", name="t.csv")
    with pytest.raises(DataError, match="no column `benchmark`"):
        read_rows(b"accelerator,accelerators_total\na,1\n", name="t.csv")


def test_a_throughput_logged_per_accelerator_is_raised_by_the_declared_rule() -> None:
    usual = [_row(throughput=800.0, train_s=100.0, line=i) for i in range(5)]
    odd = _row(throughput=100.0, train_s=100.0, line=9)
    slow = _row(throughput=300.0, train_s=100.0, line=10)
    fixed = whole_system([*usual, odd, slow])
    assert [row.throughput for row in fixed[-2:]] == [800.0, 300.0]


def test_a_benchmark_that_logs_one_accelerator_in_every_row_is_raised_whole() -> None:
    each = [_row(line=n, accelerators=n, throughput=280.0 + n / 8, train_s=20_000 / n) for n in (4, 8, 16, 64)]
    other = [
        _row(line=9, benchmark="dlrm_dcnv2", accelerators=n, throughput=1e3, train_s=9.0) for n in (4, 8, 16, 64)
    ]
    fixed = whole_system([*each, *other])
    assert [row.throughput for row in fixed[:4]] == [row.throughput * row.accelerators for row in each]
    assert fixed[4:] == other
    assert whole_system(fixed) == fixed  # twice raises nothing twice
    assert whole_system(each[:3]) == each[:3]  # three rows are no pattern


def test_a_benchmark_s_folder_of_another_round_is_the_same_benchmark() -> None:
    text = HEAD + "NVIDIA H100,8,ssd,256,,me,,,285,36,\n"
    assert read_rows(text.encode(), name="t.csv")[0].benchmark == "retinanet"


def _row(**fields: object) -> Row:
    base = {"line": 1, "benchmark": "retinanet", "accelerator": "NVIDIA H100", "accelerators": 8, "batch": 256}
    return Row(**(base | fields))  # type: ignore[arg-type]


def _jobs(predictor: Predictor, *, factor: float = 1.0, counts: Sequence[int] = (8, 16, 32, 64)) -> list[Row]:
    """Jobs whose measured steps are the bare model's times a factor that grows where samples are split."""
    rows = [
        _row(line=i, benchmark=benchmark, accelerator=chip, accelerators=n, batch=batch * n // 8, submitter=site)
        for i, (benchmark, batch, chip, n, site) in enumerate(
            (b, batch, chip, n, site)
            for b, batch in (("llama31_8b", 16), ("llama2_70b_lora", 8))
            for chip in ("NVIDIA H200-SXM5", "NVIDIA GB200")
            for n in counts
            for site in ("one", "two")
        )
    ]
    said = predictor.predict(rows)
    return [replace(row, logged_step_s=(a.step_s or 0.0) * factor) for row, a in zip(rows, said, strict=True)]


def test_calibration_carries_small_jobs_to_large_ones() -> None:
    bare = Predictor(fitted=unfitted(FORM))
    jobs = _jobs(bare, factor=0.7)
    small = [job for job in jobs if job.accelerators <= 16]
    large = [job for job in jobs if job.accelerators > 16]
    before = [abs((a.step_s or 0) / job.step_s - 1) for a, job in zip(bare.predict(large), large, strict=True)]
    after = [
        abs((a.step_s or 0) / job.step_s - 1)
        for a, job in zip(bare.calibrate(small).predict(large), large, strict=True)
    ]
    assert np.mean(before) > 0.4
    assert np.mean(after) < 0.05
    answer = bare.calibrate(small).predict(large)[0]
    assert answer.basis == "calibrated: llama31_8b on h200_sxm, up to 16 accelerators"
    assert answer.expected_error is not None
    assert answer.expected_error < (bare.predict(large)[0].expected_error or 1)


def test_one_job_that_waited_for_its_disk_does_not_spoil_the_rest() -> None:
    bare = Predictor(fitted=unfitted(FORM))
    jobs = _jobs(bare)
    spoilt = [replace(jobs[0], logged_step_s=jobs[0].step_s * 6), *jobs[1:]]
    said = bare.calibrate(spoilt).predict(jobs[1:])
    assert np.mean([abs((a.step_s or 0) / job.step_s - 1) for a, job in zip(said, jobs[1:], strict=True)]) < 0.06


def test_every_row_is_answered_or_says_what_is_missing() -> None:
    rows = [
        _row(benchmark="llama31_8b", batch=64),
        _row(benchmark="llama31_8b", accelerator="Cerebras WSE-3", batch=64),
        _row(benchmark="nobody_counted_this"),
        _row(benchmark="llama31_8b", batch=0),
        _row(benchmark="llama31_8b", accelerator="Apple M4 Pro", batch=64),
        _row(benchmark="llama31_8b", batch=64, tensor=8),
        _row(benchmark="llama2_70b_lora", accelerators=7, batch=8),
        _row(benchmark="llama31_8b", accelerator="NVIDIA H200 NVL", accelerators=8, batch=64),
        _row(benchmark="llama31_8b", accelerator="NVIDIA H200 NVL", accelerators=16, batch=64),
    ]
    said = Predictor().predict(rows)
    assert [a.step_s is not None for a in said] == [True, False, False, False, False, True, True, True, False]
    assert said[8].note == "missing: scale_out_gbit_per_s of H200 NVL 141GB"
    assert "Cerebras WSE-3" in said[1].note
    assert "nobody_counted_this" in said[2].note
    assert said[3].note == "missing: global_batch_size"
    assert "bf16_tflops of M4 Pro" in said[4].note
    assert said[5].layout == Parallel(tensor=8)
    assert added(rows[1], said[1])["step_time"] == ""
    assert float(added(rows[0], said[0])["step_time"]) == pytest.approx(said[0].step_s, rel=1e-4)


def test_an_accelerator_nobody_listed_is_answered_once_it_was_measured() -> None:
    jobs = [
        replace(job, accelerator=job.accelerator.replace("NVIDIA GB200", "Cerebras WSE-3"))
        for job in _jobs(Predictor())
    ]
    measured = [job for job in jobs if job.accelerators <= 16]
    asked = [job for job in jobs if job.accelerators == 32 and "WSE" in job.accelerator]
    said = Predictor().calibrate(measured).predict(asked)
    assert all(a.step_s is not None and "missing: the sheet" in a.note for a in said)
    assert np.mean([abs((a.step_s or 0) / job.step_s - 1) for a, job in zip(said, asked, strict=True)]) < 0.25


def test_the_form_s_time_is_the_step_s_sum(dense: Work, fabric: Fabric) -> None:
    cost = cost_of(dense, Parallel(data=4, tensor=2, pipeline=2, chunks=2), H100, fabric, batch=64)
    theta = unfitted(FORM).theta([()])
    assert float(time(table([cost]), theta)[0]) == pytest.approx(seconds(cost, rates_of(theta[0], basis="")).total_s)


def test_shipped_values_are_read_as_they_are_written() -> None:
    fitted = Predictor(fitted=unfitted(FORM)).calibrate(_jobs(Predictor(fitted=unfitted(FORM)), factor=0.8)).fitted
    shipped, basis = read_shipped(to_toml(fitted, basis="a test", kinds=("kind", "pair")).encode())
    assert basis == "a test"
    assert {kind for kind, _, _ in shipped} <= {"kind", "pair"}
    assert all(value == pytest.approx(fitted.corrections[key], abs=6e-4) for key, value in shipped.items())
    assert Predictor().fitted.shipped_basis.endswith("up to 72 accelerators")


def test_the_examination_scores_only_what_did_not_calibrate() -> None:
    rows = _jobs(Predictor(fitted=unfitted(FORM)), counts=(8, 16, 32, 64))
    lines = [
        f"{r.accelerator},{r.accelerators},{r.benchmark},{r.batch},,{r.submitter},,{r.logged_step_s},,," for r in rows
    ]
    figures = score((HEAD + "\n".join(lines) + "\n").encode())
    beyond = next(f for f in figures if f.what.endswith("beyond 16, mean"))
    assert beyond.points == sum(r.accelerators > 16 for r in rows)
    assert beyond.met is True
    assert all(f.split for f in figures)
    assert Figure(what="x", reached=float("nan"), points=0, split="", goal=0.1).met is None


def test_known_benchmarks_and_models_have_shapes() -> None:
    assert benchmark_of("llama31_405b", seq_len=0, models=MODELS).work.params == pytest.approx(405e9, rel=0.01)
    assert benchmark_of("llama31_70b", seq_len=4096, models=MODELS).work.sample_tokens == 4096
    assert benchmark_of("flux1", seq_len=0, models=MODELS).kind == "diffusion"
    assert benchmark_of("gpt3", seq_len=0, models=MODELS).work.params == pytest.approx(175e9, rel=0.02)
    assert benchmark_of("rgat", seq_len=0, models=MODELS).missing


LLAMA = MODELS.find("llama-3.1-405b")[0]


def test_a_plan_of_llama_405b_is_near_what_was_published() -> None:
    """Published: 16,384 H100, 16 M tokens a step, 38-43 % of the bf16 peak, more than 90 % effective time."""
    job = Job(shape=LLAMA, tokens=15.6e12, batch_tokens=16e6)
    made = plan(job, H100, accelerators=16_384, terms=Terms(usd_per_accelerator_hour=2.0, gco2_per_kwh=300.0))
    assert 0.36 < made.model_flops_share < 0.45
    assert made.layout.parallel.recompute is not Recompute.FULL
    assert made.goodput.work > 0.9
    assert 50 < made.wall_hours / 24 < 120
    assert made.usd == pytest.approx(made.accelerator_hours * 2.0)
    assert made.energy_kwh is not None
    assert made.carbon_kg == pytest.approx(made.energy_kwh * 0.3)
    assert made.joules_per_token == pytest.approx(made.energy_kwh * 3.6e6 / 15.6e12)
    assert made.binds == "arithmetic"
    assert made.batch * 8192 == pytest.approx(16e6, rel=0.13)


def test_blank_prices_and_powers_stay_blank() -> None:
    chip = Accelerator(
        name="Chip", source="test", bf16_tflops=500, memory_gb=80, memory_gb_per_s=2000, scale_up_gb_per_s=300,
        scale_up_domain=8, scale_out_gbit_per_s=400,
    )  # fmt: skip
    job = Job(shape=MODELS.find("llama-3.1-8b")[0], tokens=1e9, batch_tokens=1e6)
    made = plan(job, chip, accelerators=64)
    assert made.usd is made.energy_kwh is made.carbon_kg is made.joules_per_token is None
    with pytest.raises(MissingFigure, match="bf16_tflops"):
        plan(job, replace(chip, bf16_tflops=None), accelerators=64)


def test_the_fewest_accelerators_that_finish_in_time() -> None:
    job = Job(shape=MODELS.find("llama-3.1-8b")[0], tokens=1e11, batch_tokens=4e6)
    quick, slow = fewest(job, H100, within_hours=24), fewest(job, H100, within_hours=240)
    assert slow.accelerators < quick.accelerators
    assert quick.wall_hours <= 24
    assert plan(job, H100, accelerators=quick.accelerators // 2).wall_hours > 24
    with pytest.raises(DataError, match="more than 0 h"):
        fewest(job, H100, within_hours=0.01, most=1024)


def test_fine_tuning_costs_a_fraction() -> None:
    shape = MODELS.find("llama-2-70b")[0]
    whole = plan(Job(shape=shape, tokens=1e9, batch_tokens=1e6, form="fp8"), H100, accelerators=64)
    lora = plan(Job(shape=shape, tokens=1e9, batch_tokens=1e6, form="fp8", lora_rank=16), H100, accelerators=64)
    assert lora.wall_hours < whole.wall_hours
    assert lora.checkpoint.size_bytes < whole.checkpoint.size_bytes / 100


def test_own_sheets_are_found_by_name() -> None:
    own = Catalogue(
        {**read_catalogue().entries, "wse3": replace(H100, name="Cerebras WSE-3", aliases=("cerebras wse 3",))}
    )
    said = Predictor(catalogue=own).predict([_row(benchmark="llama31_8b", accelerator="Cerebras WSE-3", batch=64)])
    assert said[0].step_s is not None


def test_plans_take_the_rates_that_measured_steps_gave() -> None:
    bare = Predictor(fitted=unfitted(FORM))
    assert bare.rates("h200").basis == Rates().basis
    slower = bare.calibrate(_jobs(bare, factor=1.5)).rates("h200")
    assert slower.basis.startswith("rates fitted to")
    job = Job(shape=MODELS.find("llama-3.1-8b")[0], tokens=1e10, batch_tokens=4e6, form="fp8")
    h200 = read_catalogue().find("h200")
    assert plan(job, h200, accelerators=64, rates=slower).step_s > 1.2 * plan(job, h200, accelerators=64).step_s
    assert "MLPerf training" in Predictor().rates("h200").basis


def test_equal_jobs_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def counting(*args: Any, **options: Any) -> Any:
        searched.append(options["accelerators"])
        return layouts(*args, **options)

    monkeypatch.setattr("baseload.limits.training.predict.layouts", counting)
    text = "benchmark,accelerator,accelerators_total,global_batch_size\n" + "llama31_8b,H200,8,32\n" * 50
    answers = Predictor().predict(read_rows(text.encode(), name="t.csv"))
    assert searched == [8]
    assert len({answer.step_s for answer in answers}) == 1
