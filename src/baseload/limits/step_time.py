"""How long one engine step takes: from measured or stated points, piecewise linear between them.

A step runs prefill chunks and decode rows together. Its time is the sum of

    fixed + prefill(prompt tokens in the step) + decode(rows that decode one token) + context(KV tokens read)
          + pairs(of a prompt token and a position before it)

where `fixed` is what any step pays once (reading the weights, launching the program) and each term is a curve
through (0, 0) and its points, straight between them and straight on beyond the last two. Terms do not interact
except by sharing `fixed`; that is the first-order truth of a memory-bound engine and good enough to compare
policies with. Tables are data: TOML or JSON, with a `basis` that says where the figures come from.
"""

import tomllib
from bisect import bisect_right

import msgspec
from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.domain.units import NS_PER_MS

_HINT = "See the docstring of baseload.limits.step_time for the format."


class StepTimeSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A table as written in a file. Points are (count, milliseconds above `fixed_ms`), counts rising from 1."""

    basis: str  # where the figures come from: "measured: …", "stated: …" or "modelled: …"
    fixed_ms: float
    prefill: tuple[tuple[int, float], ...]
    decode: tuple[tuple[int, float], ...]
    context: tuple[tuple[int, float], ...] = ()
    pairs: tuple[tuple[int, float], ...] = ()


class Curve:
    """A piecewise linear, never falling function through (0, 0) with integer nanosecond values."""

    __slots__ = ("_rises", "_xs", "_ys")

    def __init__(self, points: tuple[tuple[int, int], ...]) -> None:
        self._xs = (0, *(x for x, _ in points))
        self._ys = (0, *(y for _, y in points))
        ends = range(1, len(self._xs))
        rises = [(self._ys[i] - self._ys[i - 1], self._xs[i] - self._xs[i - 1]) for i in ends]
        self._rises = (*rises, rises[-1] if rises else (0, 1))  # beyond the last point: on as before

    def at(self, x: int) -> int:
        """The value at `x` ≥ 0, in nanoseconds, rounded down: exact in integers."""
        if x <= 0:
            return 0
        i = bisect_right(self._xs, x) - 1
        rise, run = self._rises[i]
        return self._ys[i] + (x - self._xs[i]) * rise // run

    def line(self, x: int) -> tuple[int, int, int, int]:
        """The straight part `x` ≥ 0 lies on: (fixed, slope, unit, end); `at(z) == (fixed + slope * z) // unit` for
        z from x to before `end` (0: without end)."""
        i = bisect_right(self._xs, x) - 1
        rise, run = self._rises[i]
        end = self._xs[i + 1] if i + 1 < len(self._xs) else 0
        return self._ys[i] * run - self._xs[i] * rise, rise, run, end


class StepTimeTable:
    """Answers how long a step takes; built from a `StepTimeSpec`, whose errors name the table's `name`."""

    __slots__ = ("_context", "_decode", "_fixed_ns", "_pairs", "_prefill", "basis")

    def __init__(self, spec: StepTimeSpec, *, name: str = "step-time table") -> None:
        self.basis = spec.basis
        if not spec.basis:
            raise DataError(
                f"{name}: `basis` is empty.", hint="Say whether it was measured, stated or modelled, and on what."
            )
        if not 0 <= spec.fixed_ms < 1e9:
            raise DataError(f"{name}: `fixed_ms` must be a number of milliseconds ≥ 0.", hint=_HINT)
        if not spec.prefill or not spec.decode:
            raise DataError(f"{name}: `prefill` and `decode` need at least one point each.", hint=_HINT)
        self._fixed_ns = round(spec.fixed_ms * NS_PER_MS)
        self._prefill = _curve(spec.prefill, f"{name}: `prefill`")
        self._decode = _curve(spec.decode, f"{name}: `decode`")
        self._context = _curve(spec.context, f"{name}: `context`")
        self._pairs = _curve(spec.pairs, f"{name}: `pairs`")

    def step_ns(self, *, prefill_tokens: int, decode_rows: int, context_tokens: int, prefill_pairs: int = 0) -> int:
        """Nanoseconds of a step; at least 1. `context_tokens` is the sum of KV positions all its rows read,
        `prefill_pairs` of those its prompt tokens look back on, token by token."""
        work = self._prefill.at(prefill_tokens) + self._decode.at(decode_rows) + self._context.at(context_tokens)
        return max(1, self._fixed_ns + work + self._pairs.at(prefill_pairs))

    def decode_line(self, rows: int, context_tokens: int) -> tuple[int, int, int, int]:
        """Steps in which `rows` only decode, from this context on: (fixed, slope, unit, end), as `Curve.line` has it.

        `step_ns(...) == max(1, (fixed + slope * context_tokens) // unit)`: many steps are summed in closed form.
        """
        fixed, slope, unit, end = self._context.line(context_tokens)
        return fixed + (self._fixed_ns + self._decode.at(rows)) * unit, slope, unit, end


def parse_toml(data: bytes, *, name: str) -> StepTimeTable:
    """A table from TOML; errors name the file `name`."""
    try:
        return _from_object(tomllib.loads(data.decode()), name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: not TOML: {error}.", hint=_HINT) from None


def parse_json(data: bytes, *, name: str) -> StepTimeTable:
    """A table from JSON; errors name the file `name`."""
    try:
        return _from_object(msgspec.json.decode(data), name)
    except msgspec.DecodeError as error:
        raise DataError(f"{name}: not JSON: {error}.", hint=_HINT) from None


def default_table() -> StepTimeTable:
    """The table used where none is given."""
    return StepTimeTable(DEFAULT, name="default step-time table")


def _from_object(value: object, name: str) -> StepTimeTable:
    try:
        return StepTimeTable(msgspec.convert(value, StepTimeSpec), name=name)
    except msgspec.ValidationError as error:
        raise DataError(f"{name}: {error}.", hint=_HINT) from None


def _curve(points: tuple[tuple[int, float], ...], what: str) -> Curve:
    last_x, last_y = 0, 0.0
    for x, y in points:
        if x <= last_x:
            raise DataError(f"{what}: counts must rise from 1; {x} does not follow {last_x}.", hint=_HINT)
        if not last_y <= y < 1e9:
            raise DataError(f"{what}: times must not fall; {y} at {x} does not follow {last_y}.", hint=_HINT)
        last_x, last_y = x, y
    return Curve(tuple((x, round(y * NS_PER_MS)) for x, y in points))


# From four measured rates (tokens/s): prefill 512: 1,386; decode ×1: 27.6, ×8: 199, ×32: 441. A decode step of
# one row is 36.23 ms, of eight 40.20 ms, of 32 72.56 ms; the straight line through the first two gives 35.66 ms at
# no rows, which is `fixed`; a prefill of 512 is 369.4 ms. The context term was not measured: it is 32 KiB of KV
# a position (an assumption about that shape) read at the 27 GB/s measured on the same machine.
DEFAULT = StepTimeSpec(
    basis=(
        "measured: JAX 0.10.2, W8A8, 386 M-parameter Llama, 2 CPU cores with AMX (prefill 512, decode x1, x8, x32); "
        "context term modelled: 32 KiB a position at 27 GB/s"
    ),
    fixed_ms=35.66,
    prefill=((512, 333.7),),
    decode=((1, 0.57), (8, 4.54), (32, 36.90)),
    context=((1000, 1.21),),
)
