"""Static shapes: every program has a fixed number of rows, from a small set of powers of two."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Buckets:
    """Row counts of decode and prefill programs, ascending. Context length is no bucket: programs loop over it."""

    decode: tuple[int, ...]
    prefill: tuple[int, ...]

    @staticmethod
    def choose(*, max_seqs: int, max_step_tokens: int, smallest: int) -> "Buckets":
        """Powers of two from `smallest` (decode) and max(smallest, 32) (prefill) until the maximum fits."""
        return Buckets(
            decode=_powers(smallest, max_seqs),
            prefill=_powers(max(smallest, 32), max_step_tokens),
        )


def pick(buckets: Sequence[int], rows: int) -> int:
    """The smallest bucket that holds `rows`, or the largest there is (the rest takes another call)."""
    return next((bucket for bucket in buckets if bucket >= rows), buckets[-1])


def split(buckets: Sequence[int], rows: int) -> list[tuple[int, int, int]]:
    """Covers `rows` by calls (first row, rows, bucket)."""
    calls: list[tuple[int, int, int]] = []
    done = 0
    while done < rows:
        bucket = pick(buckets, rows - done)
        count = min(bucket, rows - done)
        calls.append((done, count, bucket))
        done += count
    return calls


def _powers(first: int, at_least: int) -> tuple[int, ...]:
    sizes = [first]
    while sizes[-1] < at_least:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes)
