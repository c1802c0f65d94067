"""Power of accelerators under load, as a fraction of what the sheet allows (TDP), by what they do."""

from dataclasses import dataclass

from baseload.limits.catalogue.accelerators import Accelerator

IDLE, DECODE_ONE, DECODE_FULL, PREFILL = 0.15, 0.45, 0.70, 0.95
HALFWAY_ROWS = 32.0


@dataclass(frozen=True, slots=True)
class Watts:
    """Watts of a whole replica; all 0 where the sheet gives no power."""

    idle_w: float
    decode_one_w: float
    decode_full_w: float
    prefill_w: float

    def decode(self, rows: float) -> float:
        """While so many sequences decode."""
        if rows <= 0:
            return self.idle_w
        return self.decode_one_w + (self.decode_full_w - self.decode_one_w) * (rows - 1) / (rows - 1 + HALFWAY_ROWS)


def watts_of(chip: Accelerator, accelerators: int = 1) -> Watts:
    """Of so many accelerators of a kind, cooling and host left out."""
    whole = (chip.tdp_w or 0.0) * accelerators
    return Watts(IDLE * whole, DECODE_ONE * whole, DECODE_FULL * whole, PREFILL * whole)
