"""Price and energy of replica time, exact in integers until one last rounding.

Money is nano-dollars, energy microjoules. A quantity of time times a rate is kept as (whole, remainder) where sums
must close, and rounded half up only when an entry is written, so each written figure is within half a unit.
"""

from baseload.domain.model import Price
from baseload.domain.units import NS_PER_HOUR, NUSD_PER_USD

NS_UW_PER_UJ = 1_000_000_000  # nanoseconds × microwatts in one microjoule


def nusd_per_hour(price: Price) -> int:
    """The price of one replica-hour in nano-dollars."""
    return round(price.usd_per_hour * NUSD_PER_USD)


def busy_uw(price: Price) -> int:
    """Modelled power of a replica at work (or starting: it reads weights and compiles), in microwatts."""
    return round(price.busy_w * 1_000_000)


def idle_uw(price: Price) -> int:
    """Modelled power of a replica that waits, in microwatts."""
    return round(price.idle_w * 1_000_000)


def cost_nusd(time_ns: int, rate_nusd_per_hour: int) -> int:
    """The cost of `time_ns`, rounded half up."""
    return (time_ns * rate_nusd_per_hour + NS_PER_HOUR // 2) // NS_PER_HOUR


def energy_uj(time_ns: int, power_uw: int) -> int:
    """The energy of `time_ns` at constant power, rounded half up."""
    return (time_ns * power_uw + NS_UW_PER_UJ // 2) // NS_UW_PER_UJ
