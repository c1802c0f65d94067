"""A row of the table that `baseload validate` prints: what was asked, what was reached, on which points."""

from math import isnan

from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True):
    """One figure held against a goal. Figures are fractions (0.1 is 10 %) unless `unit` says otherwise."""

    what: str
    reached: float  # NaN: no points to score
    points: int
    split: str  # which points calibrated, which were scored
    goal: float | None = None  # None: no goal was set
    higher_is_better: bool = False
    unit: str = "%"  # "%": a fraction shown in per cent; "": a plain number

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is no goal or nothing was scored."""
        if self.goal is None or isnan(self.reached):
            return None
        return self.reached >= self.goal if self.higher_is_better else self.reached <= self.goal

    def shown(self, value: float | None) -> str:
        """A figure of this row in words."""
        if value is None or isnan(value):
            return "–"
        digits = 2 if self._is_close else 1
        return f"{value:.{digits}%}" if self.unit == "%" else f"{value:.{digits + 1}f}"

    @property
    def _is_close(self) -> bool:
        """Whether goal and figure would look equal though the goal is missed."""
        if self.met is not False or self.goal is None:
            return False
        scale = 1000 if self.unit == "%" else 100
        return round(scale * self.reached) == round(scale * self.goal)
