"""Training plans: time, cost, energy, carbon and goodput of a job on given accelerators, and how best to cut it."""

from math import ceil

from msgspec import Struct

from baseload.domain.errors import BaseloadError, DataError, MissingFigure
from baseload.limits.catalogue.accelerators import Accelerator, Fabric, read_fabric
from baseload.limits.collectives import Fabric as Roads
from baseload.limits.collectives import fabric_of
from baseload.limits.goodput import LLAMA3, FailureRate, Goodput, goodput
from baseload.limits.power import AIR, Cooling, PueCurve, facility_power
from baseload.limits.shapes import ModelShape
from baseload.limits.storage import Checkpoint, Store, checkpoint, data_bytes_per_s, loading_slowdown, token_bytes
from baseload.limits.training.search import Layout, layouts
from baseload.limits.training.step import Rates
from baseload.limits.training.work import WEIGHT_BYTES, Work, work_of

LOAD_SHARE = 0.75  # of the sheet's power that training draws of an accelerator, beside its rest; assumed
RESTART_S = 300.0  # to notice, replace, start processes and warm up, beside reading the checkpoint; assumed


class Job(Struct, frozen=True, kw_only=True):
    """What is to be trained. `batch_tokens` is a step's; a LoRA rank freezes the base model."""

    shape: ModelShape
    tokens: float
    batch_tokens: float
    seq_len: int = 8192
    form: str = "bf16"  # "bf16" | "fp8" | "fp4"
    lora_rank: int = 0

    def work(self) -> Work:
        """The work of one sample."""
        return work_of(self.shape, tokens=self.seq_len, lora_rank=self.lora_rank)


class Terms(Struct, frozen=True, kw_only=True):
    """What machines, power and failures cost. Blank prices and powers leave the figures that need them blank."""

    usd_per_accelerator_hour: float | None = None
    usd_per_kwh: float | None = None  # only where power is paid apart from the hour
    gco2_per_kwh: float | None = None
    host_w_per_accelerator: float = 400.0
    outside_c: float = 15.0
    plant: Cooling | PueCurve = AIR
    failures: FailureRate = LLAMA3
    store: Store = Store()
    per_node: int = 8
    restart_s: float = RESTART_S
    asynchronous: bool = True


class TrainingPlan(Struct, frozen=True, kw_only=True):
    """A plan and what it rests on. Times are wall times of the whole job, failures included."""

    accelerator: str
    accelerators: int
    layout: Layout
    batch: int  # samples a step: the job's batch, rounded so that it can be dealt to the accelerators
    steps: int
    step_s: float
    tokens_per_s: float  # while it works
    model_flops_share: float  # of the sheet's peak in the job's format (MFU)
    checkpoint: Checkpoint
    goodput: Goodput
    work_hours: float
    wall_hours: float
    accelerator_hours: float
    power_w: float | None
    energy_kwh: float | None
    usd: float | None
    carbon_kg: float | None
    joules_per_token: float | None
    binds: str
    basis: str


def plan(
    job: Job,
    accelerator: Accelerator,
    *,
    accelerators: int,
    terms: Terms | None = None,
    rates: Rates | None = None,
    latencies: Fabric | None = None,
) -> TrainingPlan:
    """The fastest layout of a job on so many accelerators, with its cost. DataError where nothing fits."""
    terms = terms or Terms()
    work, fabric = job.work(), fabric_of(accelerator, latencies or read_fabric())
    batch, best = _cut(job, work, accelerator, fabric, accelerators, rates)
    step_s = best.step.total_s
    read = data_bytes_per_s(batch * job.seq_len / step_s, token_bytes(job.shape.vocab))
    step_s *= loading_slowdown(read, accelerators=accelerators, per_node=terms.per_node, store=terms.store)
    steps = ceil(job.tokens / (batch * job.seq_len))
    saved = checkpoint(
        work, accelerators=accelerators, per_node=terms.per_node, store=terms.store, asynchronous=terms.asynchronous
    )
    between = terms.failures.mean_time_between_s(accelerators)
    good = goodput(between, checkpoint_s=saved.stop_s, restart_s=terms.restart_s + saved.load_s, interval_s=None)
    if good.interval_s < saved.write_s:  # the store cannot take checkpoints that often
        good = goodput(
            between, checkpoint_s=saved.stop_s, restart_s=terms.restart_s + saved.load_s, interval_s=saved.write_s
        )
    work_s = steps * step_s
    wall_h = work_s / good.work / 3600.0
    power_w = _power(accelerator, accelerators, terms)
    energy = None if power_w is None else power_w * wall_h / 1e3
    peak = accelerator.tflops({"fp4": "nvfp4"}.get(job.form, job.form)) * 1e12
    return TrainingPlan(
        accelerator=accelerator.name,
        accelerators=accelerators,
        layout=best,
        batch=batch,
        steps=steps,
        step_s=step_s,
        tokens_per_s=batch * job.seq_len / step_s,
        model_flops_share=work.training_flops * batch / step_s / accelerators / peak,
        checkpoint=saved,
        goodput=good,
        work_hours=work_s / 3600.0,
        wall_hours=wall_h,
        accelerator_hours=wall_h * accelerators,
        power_w=power_w,
        energy_kwh=energy,
        usd=_usd(terms, wall_h * accelerators, energy),
        carbon_kg=None if energy is None or terms.gco2_per_kwh is None else energy * terms.gco2_per_kwh / 1e3,
        joules_per_token=None if energy is None else energy * 3.6e6 / job.tokens,
        binds=_binds(best, good),
        basis=f"{(rates or Rates()).basis}; failures: {terms.failures.source}; storage: {terms.store.basis}",
    )


def _cut(
    job: Job, work: Work, accelerator: Accelerator, fabric: Roads, accelerators: int, rates: Rates | None
) -> tuple[int, Layout]:
    """The batch nearest the job's that can be dealt out, and its fastest layout."""
    small = job.lora_rank and job.form != "bf16"
    found: list[tuple[float, int, Layout]] = []
    problem: BaseloadError | None = None
    for batch in _batches(max(1, round(job.batch_tokens / job.seq_len)), accelerators):
        try:
            best = layouts(
                work, accelerator, fabric, accelerators=accelerators, batch=batch, form=job.form, rates=rates,
                weight_bytes=WEIGHT_BYTES["fp8" if small else "bf16"], most=1,
            )[0]  # fmt: skip
        except MissingFigure:
            raise
        except BaseloadError as error:
            problem = error
        else:
            found.append((best.step.total_s / batch, batch, best))
    if not found:
        assert problem is not None
        raise problem
    _, batch, best = min(found, key=lambda item: item[:2])
    return batch, best


def _batches(batch: int, accelerators: int) -> list[int]:
    """Batches within an eighth of the one asked (where it is above 8) that share divisors with the accelerators."""
    odd = accelerators
    while odd % 2 == 0:
        odd //= 2
    grain = 1 << max(0, (batch // 8).bit_length() - 1)
    choices = [batch, max(grain, round(batch / grain) * grain)]
    if odd > 1:
        step = odd * max(1, grain // (1 << max(0, odd.bit_length() - 1)))
        choices.append(max(step, round(batch / step) * step))
    return list(dict.fromkeys(choices))


def fewest(
    job: Job,
    accelerator: Accelerator,
    *,
    within_hours: float,
    terms: Terms | None = None,
    rates: Rates | None = None,
    most: int = 65_536,
) -> TrainingPlan:
    """The smallest count (a power of two) of accelerators that finishes in time. DataError where none does."""
    count, fastest = 1, None
    while count <= most:
        try:
            found = plan(job, accelerator, accelerators=count, terms=terms, rates=rates)
        except BaseloadError as error:
            last = error.message
        else:
            if found.wall_hours <= within_hours:
                return found
            if fastest is None or found.wall_hours < fastest.wall_hours:
                fastest = found
        count *= 2
    if fastest is None:
        raise DataError(f"No count up to {most} of {accelerator.name} fits the job: {last}", hint="Choose another.")
    raise DataError(
        f"{accelerator.name}: the fastest of the counts up to {most} needs {fastest.wall_hours:.0f} h "
        f"({fastest.accelerators} accelerators), more than {within_hours:.0f} h.",
        hint="Allow more time, a larger batch (it bounds how far the job spreads), or faster accelerators.",
    )


def _power(accelerator: Accelerator, accelerators: int, terms: Terms) -> float | None:
    if accelerator.tdp_w is None:
        return None
    return facility_power(
        accelerators=accelerators,
        sheet_w=accelerator.tdp_w,
        host_w_per_accelerator=terms.host_w_per_accelerator,
        utilisation=LOAD_SHARE,
        plant=terms.plant,
        outside_c=terms.outside_c,
    ).total_w


def _usd(terms: Terms, accelerator_hours: float, energy_kwh: float | None) -> float | None:
    if terms.usd_per_accelerator_hour is None:
        return None
    hours = accelerator_hours * terms.usd_per_accelerator_hour
    if terms.usd_per_kwh is None:
        return hours
    return None if energy_kwh is None else hours + energy_kwh * terms.usd_per_kwh


def _binds(layout: Layout, good: Goodput) -> str:
    """What takes most of the time that is not the model's own arithmetic."""
    step = layout.step
    shares = {
        "arithmetic": step.math_s + step.attention_s,
        "network between accelerators": step.traffic_s + step.sync_s,
        "pipeline bubble": step.bubble_s,
        "launches and host": step.launch_s + step.host_s,
        "the slowest accelerator": step.wait_s,
        "memory bandwidth (optimizer)": step.optimizer_s,
    }
    if good.work < 0.8:
        return "failures and checkpoints"
    return max(shares, key=lambda name: shares[name])
