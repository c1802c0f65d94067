"""Units. A quantity's name ends in its unit; these are the factors between them.

Time is integer nanoseconds of wall time, never running backwards within one process (the live clock clamps it).
Energy is integer microjoules, money integer nano-dollars wherever it is summed.
"""

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
NS_PER_HOUR = 3_600 * NS_PER_S
NS_PER_DAY = 24 * NS_PER_HOUR

UJ_PER_J = 1_000_000
NUSD_PER_USD = 1_000_000_000


def seconds(value: float) -> int:
    """Seconds to integer nanoseconds, rounded to nearest."""
    return round(value * NS_PER_S)
