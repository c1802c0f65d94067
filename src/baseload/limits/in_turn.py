"""Held out in turn: each group of points answered by a predictor that was calibrated on all the others."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

R = TypeVar("R")
A_co = TypeVar("A_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


class Predicts(Protocol[R_contra, A_co]):
    """What calibrates itself by points, and answers points."""

    def calibrate(self, rows: Sequence[R_contra], /) -> Self:
        """The same, knowing these."""

    def predict(self, rows: Sequence[R_contra], /) -> Sequence[A_co]:
        """One answer a point."""


def in_turn(rows: Sequence[R], of: Callable[[R], str], predictor: Predicts[R, A_co]) -> tuple[list[R], list[A_co]]:
    """Each group's rows, answered by the predictor calibrated on all the others, in the order of their names."""
    scored: list[R] = []
    said: list[A_co] = []
    for group in sorted({of(row) for row in rows}):
        mine = [row for row in rows if of(row) == group]
        scored += mine
        said += predictor.calibrate([row for row in rows if of(row) != group]).predict(mine)
    return scored, said
