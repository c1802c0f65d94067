"""Rows of published training results (the columns of MLPerf training), as points.

Needed: `accelerator`, `accelerators_total`, `benchmark`, `global_batch_size`. Used where given: `seq_len`,
`submitter`, `framework`, `nodes`, `median_logged_step_time` (seconds), `median_logged_throughput` (samples a second),
`time_to_train_min_olympic`, `samples_to_converge_last_run`, `tensor_parallel`, `pipeline_parallel`,
`context_parallel`. A cell that is no number is an error that names its line.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import log

from msgspec import Struct
from msgspec.structs import replace

from baseload.domain.errors import DataError
from baseload.limits.tables import number_of, read_table

SAME = {"ssd": "retinanet", "gnn": "rgat"}  # folders of one round's results, under another's name
NEEDED = ("accelerator", "accelerators_total", "benchmark", "global_batch_size")
_RELEASE = re.compile(r"(?<![\d.])(2\d\.\d\d)(?![\d])")


class Row(Struct, frozen=True, kw_only=True):
    """One training job. Times are seconds; 0: not given or not measured."""

    line: int
    benchmark: str
    accelerator: str  # as written
    accelerators: int
    batch: int
    seq_len: int = 0
    nodes: int = 0
    submitter: str = ""
    release: str = ""  # of the framework's container, as "25.09"
    tensor: int = 0  # parallelism, where the row says it
    pipeline: int = 0
    context: int = 0
    samples: float = 0.0  # to convergence
    train_s: float = 0.0  # time to train
    logged_step_s: float = 0.0
    throughput: float = 0.0

    @property
    def step_s(self) -> float:
        """The measured step: as logged, or the batch over the throughput logged; 0 where neither is."""
        if self.logged_step_s > 0:
            return self.logged_step_s
        return self.batch / self.throughput if self.throughput > 0 else 0.0


def read_rows(data: bytes, *, name: str) -> list[Row]:
    """Rows of a CSV file; DataError names file, line and column."""
    hint = f"It needs {', '.join(NEEDED)}; see docs/limits-training.md."
    rows = read_table(data, name=name, hint=hint, needed=NEEDED)[1]
    return [_row(cells, f"{name}, line {line}", line) for line, cells in rows]


def whole_system(rows: Sequence[Row]) -> list[Row]:
    """Rows with throughput logged per accelerator raised to the whole system's.

    Declared rules, on samples passed (throughput × time to train), which accelerators do not change much:
    a benchmark whose samples agree at least twice as closely times their accelerators, over counts that differ
    fourfold, logs one accelerator in all its rows; and a row with less than a third of their median, which comes
    within a factor of two of it times its accelerators, logged one accelerator.
    """
    each = {name for name, of in _passed(rows).items() if _log_one(of)}
    rows = [
        replace(row, throughput=row.throughput * row.accelerators) if row.benchmark in each else row for row in rows
    ]
    passed = _passed(rows, logged=False)
    result = []
    for row in rows:
        usual = statistics.median(samples for samples, _ in passed[row.benchmark]) if passed[row.benchmark] else 0.0
        if usual and row.train_s > 0 and row.throughput > 0 and row.logged_step_s <= 0:
            mine = row.throughput * row.train_s
            if mine < usual / 3 and 0.5 < mine * row.accelerators / usual < 2.0:
                row = replace(row, throughput=row.throughput * row.accelerators)
        result.append(row)
    return result


def _passed(rows: Sequence[Row], *, logged: bool = True) -> dict[str, list[tuple[float, int]]]:
    """(samples passed, accelerators) by benchmark; `logged`: only of rows that log throughput and no step."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for row in rows:
        if row.train_s > 0 and row.step_s > 0 and not (logged and row.logged_step_s > 0):
            found[row.benchmark].append((row.batch / row.step_s * row.train_s, row.accelerators))
    return found


def _log_one(passed: Sequence[tuple[float, int]]) -> bool:
    counts = [count for _, count in passed]
    if len(passed) < 4 or max(counts) < 4 * min(counts):
        return False
    as_said = statistics.stdev(log(samples) for samples, _ in passed)
    return 2.0 * statistics.stdev(log(samples * count) for samples, count in passed) < as_said


def _row(cells: Mapping[str, str | None], where: str, line: int) -> Row:
    def text(column: str) -> str:
        return (cells.get(column) or "").strip()

    def number(*columns: str) -> float:
        for column in columns:
            if text(column):
                try:
                    value = number_of(text(column))
                except ValueError:
                    raise DataError(
                        f"{where}: `{column}` is {text(column)!r}, not a number.",
                        hint="Leave blank what is not known.",
                    ) from None
                if not 0 <= value < 1e15:
                    raise DataError(
                        f"{where}: `{column}` must be a number from 0 to 1e15, not {text(column)!r}.",
                        hint="Mend the cell.",
                    )
                return value
        return 0.0

    release = _RELEASE.search(text("framework"))
    return Row(
        line=line,
        benchmark=SAME.get(text("benchmark"), text("benchmark")),
        accelerator=text("accelerator"),
        accelerators=int(number("accelerators_total")),
        batch=int(number("global_batch_size")),
        seq_len=int(number("seq_len")),
        nodes=int(number("nodes")),
        submitter=text("submitter"),
        release=release[1] if release else "",
        tensor=int(number("tensor_parallel", "tensor_model_parallel")),
        pipeline=int(number("pipeline_parallel", "pipeline_model_parallel")),
        context=int(number("context_parallel")),
        samples=number("samples_to_converge_last_run"),
        train_s=60.0 * number("time_to_train_min_olympic", "time_to_train_min_median"),
        logged_step_s=number("median_logged_step_time", "silicon_step_time"),
        throughput=number("median_logged_throughput"),
    )
