"""Money and energy of time."""

import hypothesis.strategies as st
from hypothesis import given

from baseload.domain.model import Price
from baseload.domain.units import NS_PER_HOUR, NS_PER_S, NUSD_PER_USD
from baseload.limits.price import busy_uw, cost_nusd, energy_uj, idle_uw, nusd_per_hour


def test_an_hour_costs_its_price_and_draws_its_power() -> None:
    price = Price(usd_per_hour=1.25, busy_w=300, idle_w=40.5)
    assert cost_nusd(NS_PER_HOUR, nusd_per_hour(price)) == round(1.25 * NUSD_PER_USD)
    assert energy_uj(NS_PER_S, busy_uw(price)) == 300_000_000
    assert energy_uj(NS_PER_S, idle_uw(price)) == 40_500_000
    assert cost_nusd(0, 10**12) == energy_uj(0, 10**12) == 0


@given(times=st.lists(st.integers(0, NS_PER_HOUR), min_size=1, max_size=20), rate=st.integers(0, 10**12))
def test_parts_sum_to_the_whole_within_half_a_unit_each(times: list[int], rate: int) -> None:
    assert abs(sum(cost_nusd(time, rate) for time in times) - cost_nusd(sum(times), rate)) <= (len(times) + 1) / 2
    assert abs(sum(energy_uj(time, rate) for time in times) - energy_uj(sum(times), rate)) <= (len(times) + 1) / 2
