"""What each figure of a specification may be: ranges and names, so that a slip of the pen is refused by its key."""

import math

from baseload.domain.errors import SettingsError
from baseload.limits.catalogue.accelerators import Catalogue
from baseload.policy.plan.spec import PlanSpec, stocks_of

ENGINES = ("vllm", "sglang", "trtllm", "baseload")
TRAINING_FORMS = ("bf16", "fp8")
MOST = 1e18  # no figure of a plan is larger
HINT = "See docs/plan.md for the settings."

# key → (least, most, what it is), where it is more than a number of at least 0. Lists of tables have no index here.
RANGES: dict[str, tuple[float, float, str]] = {
    "alternatives": (1, 1000, "a count"),
    "check_requests": (1, 1_000_000, "a count"),
    "models.max_accelerators": (1, 4096, "a count"),
    "models.spare_replicas": (0, 1_000_000, "a count"),
    "models.traffic.prompt_cv": (0, 100, "a deviation over a mean"),
    "models.traffic.output_cv": (0, 100, "a deviation over a mean"),
    "models.traffic.shared_prefix": (0, 0.99, "a share of the prompt"),
    "models.traffic.prompt_tokens": (0, 100_000_000, "a count of tokens"),
    "models.traffic.output_tokens": (0, 131_072, "a mean count of tokens"),
    "models.traffic.hours": (0, 1e12, "a rate"),
    "models.traffic.bytes_per_token": (0, 1e6, "a count of bytes"),
    "training.tokens": (1, MOST, "a count of tokens"),
    "training.accelerators": (1, 100_000_000, "a count"),
    "sites.pue": (1, 10, "facility power over machine power"),
    "sites.years": (0.1, 100, "a number of years"),
    "sites.interest": (0, 1, "a share a year: 0.08 is 8 %"),
    "sites.usd_per_kwh": (-10, 1000, "dollars a kWh"),
    "sites.usd_per_kwh_by_hour": (-10, 1000, "dollars a kWh"),
    "sites.gco2_per_kwh": (0, 10_000, "grams a kWh"),
    "sites.gco2_per_kwh_by_hour": (0, 10_000, "grams a kWh"),
    "sites.outside_c": (-60, 60, "degrees Celsius"),
    "sites.hottest_c": (-60, 60, "degrees Celsius"),
    "sites.network_ms": (0, 1e9, "milliseconds"),
    "sites.accelerators.count": (0, 1_000_000_000, "a count"),
    "sites.accelerators.usd_per_hour": (1e-6, 1e6, "dollars an hour"),
    "sites.accelerators.spot_usd_per_hour": (1e-6, 1e6, "dollars an hour"),
    "sites.accelerators.reserved_usd_per_hour": (1e-6, 1e6, "dollars an hour"),
}


def check_ranges(built: dict[str, object], spec: PlanSpec, *, name: str) -> None:
    """SettingsError names the first key whose value cannot be. `built` is the specification as plain values."""
    wrong = _wrong(built, "")
    if wrong:
        raise SettingsError(f"{name}: {wrong}.", hint=HINT)
    for what, names in (
        ("models", [m.name for m in spec.models]),
        ("training", [t.name for t in spec.training]),
        ("sites", [s.name for s in spec.sites]),
    ):
        if not all(each.strip() for each in names):
            raise SettingsError(f"{name}: `{what}.name` must not be empty.", hint="Give each its own name.")
    for model in spec.models:
        if model.engine not in ENGINES:
            known = ", ".join(ENGINES)
            raise SettingsError(
                f"{name}: model {model.name!r}: unknown engine {model.engine!r}.", hint=f"Known: {known}."
            )
    for job in spec.training:
        if job.precision not in TRAINING_FORMS:
            raise SettingsError(
                f"{name}: training {job.name!r}: unknown precision {job.precision!r}.",
                hint=f"Known: {', '.join(TRAINING_FORMS)}.",
            )
    for site in spec.sites:
        if not site.accelerators:
            raise SettingsError(f"{name}: site {site.name!r} has no accelerators.", hint='Name some, or ["all"].')
        if site.kind == "cloud" and not site.tiers:
            raise SettingsError(
                f"{name}: cloud {site.name!r} has no tiers.", hint="Known: on_demand, reserved, spot."
            )


def check_stocks(spec: PlanSpec, catalogue: Catalogue, *, name: str) -> None:
    """SettingsError where a site names an accelerator twice, under any of its names; or one that is unknown."""
    for site in spec.sites:
        chips = [catalogue.find(stock.accelerator).name for stock in stocks_of(site, ())]
        twice = [chip for i, chip in enumerate(chips) if chip in chips[:i]]
        if twice:
            raise SettingsError(
                f"{name}: site {site.name!r} names {twice[0]} twice.",
                hint="Give it once, with the sum as `count`; its tiers share that. Another price is another site.",
            )


def _wrong(value: object, at: str) -> str:
    """Which number of `value` cannot be one of its key, and why; "" where all are well."""
    if isinstance(value, dict):
        return next(filter(None, (_wrong(of, f"{at}.{key}".strip(".")) for key, of in value.items())), "")
    if isinstance(value, list | tuple):
        return next(filter(None, (_wrong(of, at) for of in value)), "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    least, most, what = RANGES.get(at, (0, MOST, ""))
    if least <= value <= most:
        return ""
    if what and not math.isnan(value):
        return f"`{at}` must be {what} from {least:g} to {most:g}, not {value:g}"
    return f"`{at}` must be a number of at least {least:g}, not {value:g}"
