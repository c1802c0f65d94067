"""What a scheme makes of each matrix."""

from dataclasses import dataclass

from baseload.domain.errors import SettingsError
from baseload.engine.native.packing import GROUPS
from baseload.engine.quantize.levels import Levels, Matrix, choose_w4, choose_w8

SCHEMES = ("w8a8", "w4a8", "bf16")
DEFAULT_GROUP = 32


@dataclass(frozen=True, slots=True)
class Scheme:
    """`name` is one of SCHEMES; `group` is the columns that share a scale in w4a8, else 0."""

    name: str
    group: int = 0

    @staticmethod
    def parse(name: str, group: int = 0) -> "Scheme":
        """SettingsError names what there is."""
        if name not in SCHEMES:
            raise SettingsError(f"There is no scheme {name!r}.", hint=f"Choose one of {', '.join(SCHEMES)}.")
        if name != "w4a8":
            if group:
                raise SettingsError(f"--group is for w4a8; {name} has no groups.", hint="Leave it out.")
            return Scheme(name)
        if group and group not in GROUPS:
            raise SettingsError(
                f"A group of {group} columns is not supported.", hint=f"Choose {', '.join(map(str, GROUPS))}."
            )
        return Scheme(name, group or DEFAULT_GROUP)

    @property
    def is_integer(self) -> bool:
        """Whether matrices are rounded to integers (bf16 needs no calibration)."""
        return self.name != "bf16"

    def choose(self, name: str, weight: Matrix, importance: Matrix) -> Levels:
        """The levels of a matrix. The head keeps 8 bits: it is read once a token, and its errors reach the answer."""
        if self.name == "w4a8" and name != "lm_head":
            return choose_w4(weight, importance, self.group)
        return choose_w8(weight, importance)
