"""Which way to cut a training job: every layout that fits, timed, the fastest first."""

from collections.abc import Iterator

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.collectives import Fabric
from baseload.limits.training.step import Memory, Parallel, Rates, StepTime, cost_of, memory_of, seconds
from baseload.limits.training.work import Recompute, Work


class Layout(Struct, frozen=True):
    """A layout with its step and memory."""

    parallel: Parallel
    step: StepTime
    memory: Memory


def layouts(
    work: Work,
    accelerator: Accelerator,
    fabric: Fabric,
    *,
    accelerators: int,
    batch: int,
    form: str = "bf16",
    rates: Rates | None = None,
    weight_bytes: float = 2.0,
    most: int = 20,
) -> list[Layout]:
    """Layouts of a job that fit its accelerators' memory, fastest first, at most `most`.

    DataError where none fits says what the nearest lacks.
    """
    rates = rates or Rates()
    found: list[Layout] = []
    nearest: Memory | None = None
    for parallel in candidates(work, accelerators=accelerators, batch=batch, domain=fabric.levels[0].size):
        memory = memory_of(work, parallel, accelerator, batch=batch, weight_bytes=weight_bytes)
        if not memory.fits:
            if nearest is None or memory.used < nearest.used:
                nearest = memory
            continue
        cost = cost_of(work, parallel, accelerator, fabric, batch=batch, form=form)
        found.append(Layout(parallel, seconds(cost, rates), memory))
    if not found:
        if nearest is None:
            raise DataError(
                f"No layout spreads {batch} samples over {accelerators} accelerators.",
                hint="Choose a batch and a count that share divisors.",
            )
        raise DataError(
            f"{work.name} does not fit {accelerators} accelerators of {accelerator.name}: the leanest layout needs "
            f"{nearest.used / 1e9:.0f} GB of {nearest.room / 1e9:.0f} GB each.",
            hint="Use more accelerators, larger ones, or fewer bits per weight.",
        )
    found.sort(key=lambda layout: layout.step.total_s)
    return found[:most]


def candidates(work: Work, *, accelerators: int, batch: int, domain: int) -> Iterator[Parallel]:
    """Layouts worth timing: powers of two and divisors; recomputation only where it saves room comes last."""
    cuttable = work.layers > 0
    for tensor in _divisors(accelerators, most=min(max(domain, 1), 64) if cuttable else 1):
        if cuttable and work.hidden % (tensor * 64):
            continue
        for context in _divisors(accelerators // tensor, most=_context_most(work)):
            rest = accelerators // tensor // context
            for pipeline in _divisors(rest, most=min(work.layers, 32) if cuttable else 1):
                data = rest // pipeline
                if batch % data or batch < data:
                    continue
                yield from _variants(work, data, tensor, pipeline, context, batch)


def _variants(work: Work, data: int, tensor: int, pipeline: int, context: int, batch: int) -> Iterator[Parallel]:
    per_rank = batch // data
    if pipeline > 1 and per_rank < pipeline:
        return
    experts = _divisors(data * context, most=work.experts) if work.experts else [1]
    if not work.layers:  # nothing is cut, so nothing is gained by smaller pieces
        yield Parallel(data=data, micro=per_rank, recompute=Recompute.NONE)
        return
    micros = [
        m for m in (1, 2, 4, 8, 16, 32, 64) if per_rank % m == 0 and (pipeline == 1 or per_rank // m >= pipeline)
    ]
    chunks = [1]
    if pipeline > 1:
        chunks = [v for v in (1, 2, 4, 8) if work.layers // pipeline >= v]
    for expert in experts:
        for micro in micros:
            for chunk in chunks[-1:]:
                for recompute in Recompute:
                    yield Parallel(
                        data=data,
                        tensor=tensor,
                        pipeline=pipeline,
                        context=context,
                        expert=expert,
                        chunks=chunk,
                        micro=micro,
                        recompute=recompute,
                    )


def _context_most(work: Work) -> int:
    return max(1, min(64, work.sample_tokens // 512)) if work.layers else 1


def _divisors(number: int, *, most: int) -> list[int]:
    return [d for d in range(1, min(number, max(1, most)) + 1) if number % d == 0]
