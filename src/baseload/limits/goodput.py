"""Failures, checkpoints and goodput of a long job on many machines.

Failures are independent at a rate per accelerator-hour (published rates: `RATES`). A checkpoint every `t` seconds of
work costs `c`; a failure loses half of it on average, and then a restart `r`. The share of time that is work is

    goodput(t) = t / (M · e^((r + d)/M) · (e^((t + c)/M) − 1))

with M the mean time between failures of the whole job and d the time to notice one. Its best `t` is near Young's
√(2·c·M); `best_interval_s` is Daly's refinement. Sources: Young, "A first order approximation to the optimum
checkpoint interval" (1974); Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps"
(2006).
"""

from math import exp, sqrt

from msgspec import Struct

from baseload.domain.errors import DataError

SECONDS_PER_HOUR = 3600.0


class FailureRate(Struct, frozen=True, forbid_unknown_fields=True):
    """Unexpected interruptions per accelerator-hour, and where they were counted."""

    name: str
    per_accelerator_hour: float
    source: str

    def mean_time_between_s(self, accelerators: int) -> float:
        """Seconds between failures of a job on so many accelerators."""
        if accelerators < 1:
            raise DataError("A job runs on at least one accelerator.", hint="Give accelerators.")
        return SECONDS_PER_HOUR / (self.per_accelerator_hour * accelerators)


LLAMA3 = FailureRate(
    name="llama3-405b",
    per_accelerator_hour=419 / (16_384 * 54 * 24),
    source="419 unexpected interruptions in 54 days on 16,384 H100: The Llama 3 Herd of Models, table 5",
)
RATES = {LLAMA3.name: LLAMA3}
CAUSES = {
    "accelerator": 148 / 419,
    "memory": 72 / 419,
    "accelerator sram": 19 / 419,
    "accelerator processor": 17 / 419,
    "network": 35 / 419,
    "cpu": 2 / 419,
}
"""Shares of the interruptions counted there that these causes have; the rest is software, host and unplanned work."""


class Goodput(Struct, frozen=True, kw_only=True):
    """How a job spends its time. Shares of wall time; they sum to one."""

    interval_s: float  # work between checkpoints
    mean_time_between_failures_s: float
    work: float
    checkpoint: float
    lost: float  # work done twice
    restart: float  # noticing, replacing, loading


def best_interval_s(mean_time_between_s: float, checkpoint_s: float) -> float:
    """Daly's interval of work between checkpoints; at most the time between failures where checkpoints are dear."""
    if checkpoint_s <= 0:
        raise DataError("A checkpoint takes time.", hint="Give checkpoint_s above 0.")
    if checkpoint_s >= 2.0 * mean_time_between_s:
        return mean_time_between_s
    ratio = checkpoint_s / (2.0 * mean_time_between_s)
    return sqrt(2.0 * checkpoint_s * mean_time_between_s) * (1.0 + sqrt(ratio) / 3.0 + ratio / 9.0) - checkpoint_s


def goodput(
    mean_time_between_s: float,
    *,
    checkpoint_s: float,
    restart_s: float,
    detect_s: float = 0.0,
    interval_s: float | None = None,
) -> Goodput:
    """Shares of time at an interval (default: the best), with exponential failures.

    The expected wall time of one interval that must succeed is Daly's M·e^(R/M)·(e^((t+c)/M) − 1).
    """
    least = max(checkpoint_s, 1e-9)
    work = best_interval_s(mean_time_between_s, least) if interval_s is None else interval_s
    if work <= 0:
        raise DataError("Work between checkpoints takes time.", hint="Give interval_s above 0.")
    rate = 1.0 / mean_time_between_s
    pause = restart_s + detect_s
    tries = exp(min(700.0, (work + checkpoint_s) * rate)) - 1.0  # failures met per interval that succeeds
    wall = mean_time_between_s * exp(min(700.0, pause * rate)) * tries
    paused = min(wall - work - checkpoint_s, tries * pause) if wall > work + checkpoint_s else 0.0
    return Goodput(
        interval_s=work,
        mean_time_between_failures_s=mean_time_between_s,
        work=work / wall,
        checkpoint=checkpoint_s / wall,
        restart=paused / wall,
        lost=max(0.0, 1.0 - (work + checkpoint_s + paused) / wall),
    )


def spares_needed(
    rate: FailureRate, accelerators: int, *, repair_hours: float, sure: float = 0.99, hardware_share: float = 0.78
) -> int:
    """Spare accelerators so that, with probability `sure`, all broken ones have a stand-in while they are mended.

    Broken at a time: Poisson with the hardware share of the failure rate times the time to mend. (78 % of Llama 3's
    interruptions were hardware.)
    """
    mean = rate.per_accelerator_hour * hardware_share * accelerators * repair_hours
    chance, total, spares = exp(-mean), 0.0, 0
    while True:
        total += chance
        if total >= sure or spares > 10 * mean + 100:
            return spares
        spares += 1
        chance *= mean / spares
