"""From spans to the arrays of a step: which rows go into which call, and where they stand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from baseload.engine.native.attention import Inputs, array_shape
from baseload.engine.rope import RopeTable
from baseload.engine.spans import Span

LINE = 64  # bytes: XLA's CPU client uses host memory in place where it begins at a cache line


@dataclass(frozen=True, slots=True)
class StepSize:
    """The most a step may hold: rows, spans, wanted logits, and blocks of one sequence."""

    rows: int
    spans: int
    picks: int
    table_blocks: int


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens first … first + count - 1 of a span, and how many of its last logits are wanted."""

    span: Span
    first: int
    count: int
    wanted: int


def plan_calls(spans: Sequence[Span], size: StepSize) -> Iterator[list[Part]]:
    """The spans in order, cut so that each call fits: mostly one call."""
    call: list[Part] = []
    rows = picks = 0
    for span in spans:
        total = len(span.tokens)
        wanted = min(span.logits, total) if span.wants_logits else 0
        done = 0
        while done < total:
            if rows == size.rows or len(call) == size.spans or (wanted and picks == size.picks):
                yield call
                call, rows, picks = [], 0, 0
            count = min(total - done, size.rows - rows)
            inside = max(0, done + count - (total - wanted)) - max(0, done - (total - wanted))
            if picks + inside > size.picks:  # only as many rows as their logits have room
                count -= picks + inside - size.picks
                inside = size.picks - picks
            call.append(Part(span, done, count, inside))
            done, rows, picks = done + count, rows + count, picks + inside
    if call:
        yield call


class StepArrays:
    """The inputs of a step, in host memory that the device reads in place where it can.

    Written anew before each call, after the one before has ended: `inputs` must not be in use then.
    """

    def __init__(self, size: StepSize, rope: RopeTable, head_dim: int, block_tokens: int) -> None:
        self._rope = rope
        self._block_tokens = block_tokens
        self._host = Inputs(
            tokens=_aligned((size.rows,), np.int32),
            active=_aligned((1,), np.int32),
            spans=_aligned((1 + size.spans, 4), np.int32),
            tables=_aligned((size.spans, size.table_blocks), np.int32),
            angles=_aligned((size.rows, head_dim), np.float32),
            picks=_aligned((size.picks,), np.int32),
            picked=_aligned((1,), np.int32),
        )
        self._device = jax.tree.map(lambda array: jax.device_put(array, may_alias=True), self._host)
        pairs = zip(jax.tree.leaves(self._host), jax.tree.leaves(self._device), strict=True)
        self._in_place = all(there.unsafe_buffer_pointer() == here.ctypes.data for here, there in pairs)

    @property
    def shapes(self) -> Inputs:
        """The shapes alone, to compile for."""
        shapes: Inputs = jax.tree.map(lambda array: array_shape(array.shape, array.dtype), self._host)
        return shapes

    def fill(self, call: Sequence[Part]) -> tuple[Inputs, int]:
        """The arrays of this call and how many logits it gives, in the order of its parts."""
        host = self._host
        spans, tables = host.spans, host.tables
        rows = picked = 0
        table: list[list[int]] = []
        for index, part in enumerate(call):
            start, blocks = part.span.start + part.first, part.span.blocks
            host.tokens[rows : rows + part.count] = part.span.tokens[part.first : part.first + part.count]
            used = -(-(start + part.count) // self._block_tokens)
            tables[index, :used] = blocks[:used]
            table.append([rows, part.count, start, index])
            rows += part.count
            if part.wanted == 1:
                host.picks[picked] = rows - 1
            elif part.wanted:
                host.picks[picked : picked + part.wanted] = np.arange(rows - part.wanted, rows)
            picked += part.wanted
        at = np.array(table, np.int32)
        spans[0] = len(call), rows, 0, 0
        spans[1 : 1 + len(call)] = at
        spans[1 + len(call) :, 1] = 0
        self._turn(at, rows)
        host.active[0], host.picked[0] = rows, picked
        if self._in_place:
            return self._device, picked
        return jax.device_put(host), picked

    def _turn(self, at: np.ndarray, rows: int) -> None:
        """The angles of all rows."""
        if rows == len(at):
            positions = at[:, 2]
        else:
            positions = np.repeat(at[:, 2] - at[:, 0], at[:, 1]) + np.arange(rows, dtype=np.int32)
        cos, sin = self._rope.at(positions)
        half = cos.shape[1]
        self._host.angles[:rows, :half] = cos
        self._host.angles[:rows, half:] = sin


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that begin at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype).reshape(shape)
