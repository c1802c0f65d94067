"""What a site stands in: its electricity zone and weather, and the network that answers leave by.

`with_zones` fills what a specification leaves blank of carbon, price of electricity and outside temperature;
`leaving` says what moving the answers out costs, once it is known where they are written.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from baseload.domain.errors import SettingsError
from baseload.limits.carbon import Zone
from baseload.limits.money import HOURS_PER_MONTH, TransferPrice, transfer_usd
from baseload.policy.plan.answer import Leaving, ModelAnswer
from baseload.policy.plan.spec import PlanSpec, ServedModel, Site

SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600.0


def with_zones(
    spec: PlanSpec, zones: Mapping[str, Zone], transfer: Mapping[str, TransferPrice], *, name: str
) -> tuple[PlanSpec, tuple[str, ...]]:
    """The specification with its sites' blanks filled from their zones, and what was filled, in words.

    Call it before `with_hours`. SettingsError where a zone or a way of transfer is not known.
    """
    sites, notes = [], []
    for site in spec.sites:
        _known(site.transfer, list(transfer), "transfer", site, name)
        if site.zone:
            zone = _find(zones, site, name)
            filled, words = _filled(site, zone)
            if words:
                notes.append(f"{site.name}, of zone {zone.name} ({zone.source}): {', '.join(words)}")
            site = filled
        sites.append(site)
    return replace(spec, sites=tuple(sites)), tuple(notes)


def leaving(
    spec: PlanSpec, answers: Sequence[ModelAnswer], transfer: Mapping[str, TransferPrice]
) -> tuple[Leaving, ...]:
    """What the answers cost that leave each site that says by what price; requests come in for nothing."""
    gigabytes: dict[str, float] = {}
    for model, answer in zip(spec.models, answers, strict=True):
        served = [choice.requests_per_s * choice.replicas * choice.used for choice in answer.chosen]
        for choice, part in zip(answer.chosen, served, strict=True):
            share = part / sum(served) if sum(served) else 0.0
            gigabytes[choice.site] = gigabytes.get(choice.site, 0.0) + share * _gb_per_month(model)
    found = []
    for site in spec.sites:
        if site.transfer and site.name in gigabytes:
            price, out = transfer[site.transfer], gigabytes[site.name]
            found.append(Leaving(site.name, out, transfer_usd(price, out), f"{price.provider}: {price.source}"))
    return tuple(found)


def _gb_per_month(model: ServedModel) -> float:
    traffic = model.traffic
    return traffic.requests_per_s * traffic.output_tokens * traffic.bytes_per_token * SECONDS_PER_MONTH / 1e9


def _known(value: str, known: Sequence[str], key: str, site: Site, name: str) -> None:
    if value and value not in known:
        raise SettingsError(
            f"{name}: site {site.name!r}: unknown {key} {value!r}.", hint=f"Known: {', '.join(known)}."
        )


def _find(zones: Mapping[str, Zone], site: Site, name: str) -> Zone:
    """By identifier or name, however written."""
    asked = site.zone.lower().replace("-", "_")
    for id_, zone in zones.items():
        if asked in (id_.lower().replace("-", "_"), zone.name.lower().replace("-", "_")):
            return zone
    raise SettingsError(
        f"{name}: site {site.name!r}: unknown zone {site.zone!r}.",
        hint=f"Known: {', '.join(zones)}. Give your own as `zones_file`, a CSV by the hour.",
    )


def _filled(site: Site, zone: Zone) -> tuple[Site, list[str]]:
    words = []
    if site.gco2_per_kwh is None and not site.gco2_per_kwh_by_hour and zone.gco2_per_kwh is not None:
        site = replace(site, gco2_per_kwh=zone.gco2_per_kwh, gco2_per_kwh_by_hour=zone.gco2_per_kwh_by_hour)
        words.append(f"{zone.gco2_per_kwh:.0f} g CO2 a kWh")
    owns_power = site.kind != "cloud"  # a cloud's is part of its price
    if owns_power and site.usd_per_kwh is None and not site.usd_per_kwh_by_hour and zone.usd_per_mwh is not None:
        by_hour = tuple(usd / 1e3 for usd in zone.usd_per_mwh_by_hour)
        site = replace(site, usd_per_kwh=zone.usd_per_mwh / 1e3, usd_per_kwh_by_hour=by_hour)
        words.append(f"${zone.usd_per_mwh / 1e3:.3f} a kWh wholesale (grid fees and taxes come on top)")
    if site.pue is None and site.outside_c is None and zone.mean_c is not None:
        site = replace(site, outside_c=zone.mean_c)
        words.append(f"{zone.mean_c:.0f} °C outside on average")
    if site.pue is None and site.hottest_c is None and zone.hottest_c is not None:
        site = replace(site, hottest_c=zone.hottest_c)
        words.append(f"{zone.hottest_c:.0f} °C at the hottest")
    return site, words
