"""Power of racks and facilities: what the accelerators draw, what the hosts add, and what cooling adds to both.

    accelerator = idle + (limit − idle) · utilisation          limit: the sheet's power, or a cap below it
    IT          = accelerators + hosts + switches
    facility    = IT · PUE(outside temperature)

A cooling plant is a `Cooling` value. Its PUE is the electrical loss, fans and pumps, and a chiller that takes over
from outside air as the weather warms: between `free_below_c` and `chiller_above_c` its share of the heat rises from
none to all, and it moves a joule of heat for 1/COP joules, with COP a fixed share of Carnot's. All of it is
modelled; a site's own measured curve (`PueCurve`) takes its place.
"""

from bisect import bisect_right

from msgspec import Struct

from baseload.domain.errors import DataError

KELVIN = 273.15
IDLE_SHARE = 0.12  # of the sheet's power, at rest; assumed where no measurement says better


class PueCurve(Struct, frozen=True, forbid_unknown_fields=True):
    """A measured (or stated) PUE by outside temperature: rising (°C, PUE) points, straight between, flat beyond."""

    points: tuple[tuple[float, float], ...]
    basis: str

    def at(self, outside_c: float) -> float:
        """PUE when it is `outside_c` outside."""
        if not self.points:
            raise DataError("A PUE curve needs at least one point.", hint="Give [outside °C, PUE] pairs.")
        xs = [x for x, _ in self.points]
        i = bisect_right(xs, outside_c)
        if i == 0:
            return self.points[0][1]
        if i == len(xs):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[i - 1], self.points[i]
        return y0 + (y1 - y0) * (outside_c - x0) / (x1 - x0)


class Cooling(Struct, frozen=True, forbid_unknown_fields=True):
    """A cooling plant, modelled. Shares are of IT power; temperatures are outside air, °C."""

    name: str
    electrical_loss: float = 0.06  # transformers, UPS, distribution
    fans_pumps: float = 0.04
    supply_c: float = 24.0  # what the machines are cooled with
    approach_c: float = 12.0  # by how much the condenser is warmer than the air
    carnot_share: float = 0.5  # of the ideal COP that a chiller reaches
    free_below_c: float = 12.0  # outside air alone cools
    chiller_above_c: float = 22.0  # the chiller alone cools
    max_cop: float = 12.0
    basis: str = "modelled: share of Carnot's COP; loss and fan shares are assumed"

    def at(self, outside_c: float) -> float:
        """PUE when it is `outside_c` outside."""
        width = max(0.1, self.chiller_above_c - self.free_below_c)
        share = min(1.0, max(0.0, (outside_c - self.free_below_c) / width))
        lift = max(1.0, outside_c + self.approach_c - self.supply_c)
        cop = min(self.max_cop, self.carnot_share * (self.supply_c + KELVIN) / lift)
        return 1.0 + self.electrical_loss + self.fans_pumps + share / cop


AIR = Cooling(name="air", fans_pumps=0.08)
"""Cold-aisle air with an economiser and chillers."""

LIQUID = Cooling(
    name="liquid", electrical_loss=0.05, fans_pumps=0.03, supply_c=40.0, free_below_c=27.0, chiller_above_c=38.0
)
"""Direct liquid cooling with warm water and dry coolers: chillers only in great heat."""

LEGACY = Cooling(
    name="legacy", electrical_loss=0.10, fans_pumps=0.15, supply_c=12.0, free_below_c=2.0, chiller_above_c=10.0
)
"""An older hall: chilled water near 12 °C, hardly any outside air."""

PLANTS = {plant.name: plant for plant in (AIR, LIQUID, LEGACY)}


def accelerator_w(
    sheet_w: float, *, utilisation: float, idle_w: float | None = None, cap_w: float | None = None
) -> float:
    """Power of one accelerator at a utilisation (0..1): from idle to the sheet's power or a cap below it."""
    idle = IDLE_SHARE * sheet_w if idle_w is None else idle_w
    limit = sheet_w if cap_w is None else max(idle, min(sheet_w, cap_w))
    return idle + (limit - idle) * min(1.0, max(0.0, utilisation))


class FacilityPower(Struct, frozen=True):
    """Watts of a site at one instant."""

    accelerators_w: float
    hosts_w: float
    network_w: float
    pue: float

    @property
    def it_w(self) -> float:
        """Everything that computes or carries bits."""
        return self.accelerators_w + self.hosts_w + self.network_w

    @property
    def total_w(self) -> float:
        """What the meter at the fence reads."""
        return self.it_w * self.pue


def facility_power(
    *,
    accelerators: int,
    sheet_w: float,
    host_w_per_accelerator: float,
    utilisation: float,
    plant: Cooling | PueCurve,
    outside_c: float,
    network_w_per_accelerator: float = 0.0,
    idle_w: float | None = None,
    cap_w: float | None = None,
    host_idle_share: float = 0.5,
) -> FacilityPower:
    """Power of `accelerators` with their hosts, network and cooling. Watts per accelerator in, watts out."""
    busy = min(1.0, max(0.0, utilisation))
    hosts = host_w_per_accelerator * (host_idle_share + (1.0 - host_idle_share) * busy)
    return FacilityPower(
        accelerators_w=accelerators * accelerator_w(sheet_w, utilisation=busy, idle_w=idle_w, cap_w=cap_w),
        hosts_w=accelerators * hosts,
        network_w=accelerators * network_w_per_accelerator,
        pue=plant.at(outside_c),
    )
