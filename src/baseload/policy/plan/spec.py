"""What to plan for, as frozen values read from TOML: models and their traffic, training jobs, sites, limits."""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from baseload.domain.errors import SettingsError

Objective = Literal["usd_per_mtok", "tokens_per_joule", "latency"]
HOURS = 24
Statistic = Literal["mean", "p90", "p95", "p99"]
Kind = Literal["cloud", "owned", "region", "enterprise", "edge", "device"]  # of a site, from far to near
OBJECTIVES: tuple[Objective, ...] = ("usd_per_mtok", "tokens_per_joule", "latency")


class Traffic(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What clients ask. With a trace, blanks are filled from it; lengths are means, `…_cv` deviation over mean."""

    requests_per_s: float = 0.0  # mean over the day
    peak_requests_per_s: float = 0.0  # busiest minutes; 0: the mean
    diurnal: bool = True  # the day is a wave between its trough and the peak; False: peaks may come at any time
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt_cv: float = 1.0
    output_cv: float = 0.8
    shared_prefix: float = 0.0  # share of a prompt's tokens that the prefix cache has, on average
    bytes_per_token: float = 240.0  # of answers, as they leave: an event of a stream; some 5 where they leave whole
    hours: tuple[float, ...] = ()  # requests per second in each of 24 hours (UTC); instead of mean, peak and wave
    trace: str = ""  # a CSV of arrivals and lengths, as `baseload simulate` reads


class Levels(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What clients are promised. 0: no level."""

    ttft_ms: float = 0.0
    ttft_of: Statistic = "p99"
    tpot_ms: float = 0.0
    tpot_of: Statistic = "mean"


class ServedModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model to serve. `model` is a known shape's name or the path of a config.json."""

    name: str
    model: str
    traffic: Traffic
    levels: Levels = Levels()
    engine: str = "vllm"  # "vllm" | "sglang" | "trtllm" | "baseload"
    engine_version: str = ""
    precisions: tuple[str, ...] = ()  # weight formats allowed; empty: the model's own, and fp8
    modes: tuple[str, ...] = ("aggregated", "disaggregated")
    residency: tuple[str, ...] = ()  # regions it may be served from; empty: any
    spare_replicas: int = 0  # beyond what the peak needs
    interruptible: bool = False  # spot machines will do
    flexible: bool = False  # a day's work may be done at any of its hours: batch
    max_accelerators: int = 16  # of one replica


class TrainingJob(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model to train or fine-tune."""

    name: str
    model: str
    tokens: float  # to train on
    sequence_tokens: int = 8192
    batch_tokens: int = 4_194_304  # of one optimizer step
    precision: str = "bf16"
    deadline_days: float = 0.0  # 0: none
    residency: tuple[str, ...] = ()
    method: Literal["full", "lora"] = "full"
    accelerators: tuple[int, ...] = ()  # counts to try; empty: chosen


class Stock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An accelerator to be had at a site. Prices are per accelerator and hour; blank ones come from the catalogue."""

    accelerator: str
    count: int = 0  # 0: as many as one pays for
    usd_per_hour: float | None = None
    spot_usd_per_hour: float | None = None
    reserved_usd_per_hour: float | None = None
    capex_usd: float | None = None  # owned and edge: with its share of host and network


class Site(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A place that has accelerators. `accelerators` may be names, tables, or "all" for the whole catalogue."""

    name: str
    kind: Kind = "cloud"
    region: str = ""
    accelerators: tuple[str | Stock, ...] = ("all",)
    tiers: tuple[Literal["on_demand", "reserved", "spot"], ...] = ("on_demand",)  # of a cloud
    provider: str = ""  # only this provider's prices
    power_mw: float = 0.0  # of the connection, cooling included; 0: no limit
    usd_per_kwh: float | None = None  # owned and edge
    gco2_per_kwh: float | None = None
    usd_per_kwh_by_hour: tuple[float, ...] = ()  # in each of 24 hours (UTC); fills `usd_per_kwh` with its mean
    gco2_per_kwh_by_hour: tuple[float, ...] = ()
    zone: str = ""  # an electricity zone: fills what is blank of price, carbon and outside temperature
    plant: Literal["", "air", "liquid", "legacy"] = ""  # how machines are cooled; "": air
    outside_c: float | None = None  # mean temperature; blank: 15 °C
    hottest_c: float | None = None  # on the day that power must last for; blank: as on average
    pue: float | None = None  # blank: modelled, of the three above
    transfer: str = ""  # by which price answers leave (`baseload catalogue transfer`); "": for nothing
    network_ms: float = 0.0  # from clients, added to TTFT
    years: float = 5.0  # over which capital is paid back
    interest: float = 0.08
    usd_per_kw_month: float | None = None  # rented space
    people: float = 0.0
    usd_per_person_year: float | None = None


class PlanLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may not be exceeded over all sites. 0: no limit."""

    usd_per_month: float = 0.0
    megawatts: float = 0.0
    tonnes_co2_per_month: float = 0.0


class PlanSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole question."""

    name: str = "plan"
    objective: Objective = "usd_per_mtok"
    shift_by: Literal["price", "carbon"] = "price"  # where hours are stated: what work is moved for
    models: tuple[ServedModel, ...] = ()
    training: tuple[TrainingJob, ...] = ()
    sites: tuple[Site, ...] = ()  # at least one
    limits: PlanLimits = PlanLimits()
    alternatives: int = 10  # ranked answers per model
    accelerators_file: str = ""  # your own accelerators TOML; zones and transfer prices may stand in it too
    zones_file: str = ""  # your own zones: a CSV by the hour, see limits/carbon.py
    check_requests: int = 400  # of a twin run that checks an answer


def check_spec(spec: PlanSpec, *, name: str) -> None:
    """SettingsError where figures make no question. Call it once traces have been read into the traffic."""
    hint = "See docs/plan.md for the settings."
    if not spec.sites or not (spec.models or spec.training):
        raise SettingsError(f"{name}: a plan needs sites, and models or training jobs.", hint=hint)
    for what, names in (
        ("model", [m.name for m in spec.models]),
        ("training job", [t.name for t in spec.training]),
        ("site", [s.name for s in spec.sites]),
    ):
        twice = [one for i, one in enumerate(names) if one in names[:i]]
        if twice:
            raise SettingsError(f"{name}: two {what}s are called {twice[0]!r}.", hint="Give each its own name.")
    _check_hours(spec, name=name)
    for model in spec.models:
        where = f"{name}: model {model.name!r}"
        traffic = model.traffic
        if not traffic.requests_per_s > 0 or traffic.prompt_tokens < 1 or traffic.output_tokens < 1:
            raise SettingsError(
                f"{where}: traffic needs requests_per_s above 0, prompt_tokens and output_tokens of at least 1.",
                hint="Or name a trace (a CSV of arrivals and lengths) in traffic.trace.",
            )
        if 0 < traffic.peak_requests_per_s < traffic.requests_per_s:
            raise SettingsError(f"{where}: the peak lies below the mean.", hint=hint)
        if min(model.levels.ttft_ms, model.levels.tpot_ms, traffic.prompt_cv, traffic.output_cv) < 0:
            raise SettingsError(f"{where}: levels and deviations cannot be negative.", hint=hint)
        modes = [mode for mode in model.modes if mode not in ("aggregated", "disaggregated")]
        if modes or not model.modes:
            raise SettingsError(f"{where}: modes are aggregated and disaggregated, not {modes}.", hint=hint)
    for job in spec.training:
        if not job.tokens > 0 or job.batch_tokens < job.sequence_tokens or job.sequence_tokens < 1:
            raise SettingsError(
                f"{name}: training {job.name!r}: tokens must be above 0 and a batch hold at least one sequence.",
                hint=hint,
            )
    blind = [site.name for site in spec.sites if site.gco2_per_kwh is None]
    if spec.limits.tonnes_co2_per_month and blind:
        raise SettingsError(
            f"{name}: carbon is limited, and site {blind[0]!r} does not say what a kWh emits.",
            hint="Give each site gco2_per_kwh (or gco2_per_kwh_by_hour).",
        )
    if min(spec.limits.usd_per_month, spec.limits.megawatts, spec.limits.tonnes_co2_per_month) < 0:
        raise SettingsError(f"{name}: limits cannot be negative; 0 is none.", hint=hint)


def _check_hours(spec: PlanSpec, *, name: str) -> None:
    for where, hours in (
        *((f"model {m.name!r}: traffic.hours", m.traffic.hours) for m in spec.models),
        *((f"site {s.name!r}: usd_per_kwh_by_hour", s.usd_per_kwh_by_hour) for s in spec.sites),
        *((f"site {s.name!r}: gco2_per_kwh_by_hour", s.gco2_per_kwh_by_hour) for s in spec.sites),
    ):
        if len(hours) not in (0, HOURS):
            raise SettingsError(f"{name}: {where} has {len(hours)} values.", hint=f"Give {HOURS}, one an hour.")


def with_hours(spec: PlanSpec) -> PlanSpec:
    """The specification with means (and peaks) filled in from what is stated by the hour."""
    models = []
    for model in spec.models:
        traffic = model.traffic
        if traffic.hours:
            mean = sum(traffic.hours) / len(traffic.hours)
            peak = max(traffic.peak_requests_per_s, *traffic.hours)
            traffic = replace(traffic, requests_per_s=mean, peak_requests_per_s=peak)
        if model.flexible:  # a day's work done evenly needs no peak
            traffic = replace(traffic, peak_requests_per_s=0.0, hours=())
        models.append(replace(model, traffic=traffic))
    sites = [
        replace(
            site,
            usd_per_kwh=_or_mean(site.usd_per_kwh, site.usd_per_kwh_by_hour),
            gco2_per_kwh=_or_mean(site.gco2_per_kwh, site.gco2_per_kwh_by_hour),
        )
        for site in spec.sites
    ]
    return replace(spec, models=tuple(models), sites=tuple(sites))


def _or_mean(stated: float | None, hours: tuple[float, ...]) -> float | None:
    return sum(hours) / len(hours) if stated is None and hours else stated


def peak_of(traffic: Traffic) -> float:
    """Requests per second at the peak."""
    return traffic.peak_requests_per_s or traffic.requests_per_s


def stocks_of(site: Site, known: tuple[str, ...]) -> tuple[Stock, ...]:
    """The site's accelerators as tables; "all" stands for the `known` ones it does not name."""
    named = [
        item if isinstance(item, Stock) else Stock(accelerator=item) for item in site.accelerators if item != "all"
    ]
    if "all" in site.accelerators:
        have = [stock.accelerator for stock in named]
        named += [Stock(accelerator=one) for one in known if one not in have]
    return tuple(named)
