"""Jobs as they come, and one job as it runs: work, checkpoints, what a stop costs."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from baseload.domain.errors import DataError, SettingsError
from baseload.domain.jobs import JobSpec
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_HOUR, NS_PER_S, seconds
from baseload.twin.cluster.spec import Cluster, JobStream

NS_PER_MIN = 60 * NS_PER_S


class Run:
    """A job in the simulated world. All times in nanoseconds."""

    __slots__ = (
        "alive", "attempt", "checkpoint_ns", "done_ns", "each_ns", "ended_ns", "epoch", "first_ns", "held_ns",
        "lost_ns", "nodes", "previous_ns", "rate", "saved_ns", "since_ns", "site", "spec", "start_ns", "stream",
        "submitted_ns", "work_ns",
    )  # fmt: skip

    def __init__(self, spec: JobSpec, stream: JobStream, *, submitted_ns: int, work_ns: int) -> None:
        self.spec = spec
        self.stream = stream
        self.submitted_ns = submitted_ns
        self.work_ns = work_ns  # undisturbed
        self.each_ns = max(NS_PER_S, round(stream.checkpoint_min * NS_PER_MIN))
        self.checkpoint_ns = seconds(stream.checkpoint_s)
        self.start_ns = seconds(stream.start_s)
        self.done_ns = 0  # work until its last attempt to save it
        self.saved_ns = 0  # work that survives a stop
        self.previous_ns = 0  # work the checkpoint before the last one holds
        self.nodes: tuple[tuple[int, int], ...] = ()
        self.site = -1
        self.attempt = 0
        self.epoch = 0  # counts its starts and changes of pace: what was planned before is void
        self.since_ns = 0  # when the present stretch of work began
        self.rate = 1.0
        self.alive = False  # works, as opposed to: hangs with a broken node
        self.first_ns = -1  # its first start
        self.ended_ns = -1
        self.lost_ns = 0  # work done twice
        self.held_ns = 0  # when it got the accelerators it holds

    def stretch_ns(self) -> int:
        """Time until its next checkpoint, or its end."""
        left = min(self.each_ns, self.work_ns - self.done_ns)
        return max(1, round(left / self.rate))

    def worked_ns(self, now_ns: int) -> int:
        """Work since its last checkpoint."""
        return min(round(max(0, now_ns - self.since_ns) * self.rate), self.work_ns - self.done_ns)


def submitted(cluster: Cluster, *, seed: int, base: Path | None) -> list[Run]:
    """All jobs in order of their submission."""
    runs: list[Run] = []
    for number, stream in enumerate(cluster.jobs):
        random = np.random.default_rng(Rng(seed, f"twin.cluster.jobs.{number}").u64())
        rows = list(_traced(stream, base)) if stream.trace else list(_drawn(stream, cluster.hours, random))
        for at, (at_ns, accelerators, work_ns) in enumerate(rows):
            if at_ns > cluster.hours * NS_PER_HOUR:
                break
            spec = JobSpec(
                job_id=f"{stream.name}-{at}",
                tenant=stream.tenant,
                accelerators=accelerators,
                priority=stream.priority,
                preemptible=stream.preemptible,
                most_usd_per_kwh=stream.most_usd_per_kwh,
            )
            runs.append(Run(spec, stream, submitted_ns=at_ns, work_ns=work_ns))
    runs.sort(key=lambda run: run.submitted_ns)
    return runs


def _drawn(stream: JobStream, hours: float, random: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    if not stream.per_hour > 0 or not stream.sizes:
        raise SettingsError(f"cluster.jobs {stream.name}: per_hour must be above 0, and sizes not empty.")
    count = int(random.poisson(stream.per_hour * hours))
    times = np.sort(random.random(count) * hours * NS_PER_HOUR).astype(np.int64)
    sizes = np.array([size for size, _ in stream.sizes], np.int64)
    weights = np.array([weight for _, weight in stream.sizes])
    chosen = sizes[random.choice(len(sizes), count, p=weights / weights.sum())]
    work = stream.hours * np.exp(stream.spread * random.standard_normal(count)) * NS_PER_HOUR
    for at_ns, accelerators, work_ns in zip(times, chosen, work, strict=True):
        yield int(at_ns), int(accelerators), max(NS_PER_S, int(work_ns))


def _traced(stream: JobStream, base: Path | None) -> Iterator[tuple[int, int, int]]:
    path = base / stream.trace if base is not None else Path(stream.trace)
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.DictReader(file), 2):
                try:
                    at_ns, work_ns = seconds(float(row["submitted_s"])), seconds(float(row["duration_s"]))
                    rows.append((at_ns, int(row["accelerators"]), max(NS_PER_S, work_ns)))
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(
                        f"{path}, line {line}: {error!r}.", hint="Columns: submitted_s, accelerators, duration_s."
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {why}.", hint="Name a CSV of jobs.") from None
    yield from sorted(rows)
