"""A plan's answer, as plain values: for the command line to print, for JSON and for the page."""

from msgspec import Struct


class Basis(Struct, frozen=True):
    """What a choice's figures rest on, and by how much times are expected to miss (mean, relative)."""

    times: str
    price: str
    power: str
    tpot_expected_error: float
    ttft_expected_error: float
    note: str = ""


class Choice(Struct, frozen=True, kw_only=True):
    """One way to serve a model. Times are at the peak, in the statistics of the levels; money is a mean."""

    site: str
    kind: str  # of the site
    tier: str
    accelerator: str
    mode: str
    precision: str
    layout: str
    tp: int
    dp: int
    ep: int
    pp: int
    replicas: int  # at the peak, spares included; disaggregated: groups
    mean_replicas: float
    prefill_workers: int  # of one group; 0: aggregated
    decode_workers: int
    accelerators: int  # at the peak
    max_seqs: int
    max_step_tokens: int
    requests_per_s: float  # that one replica carries within the levels
    used: float  # of that, at the peak
    ttft_ms: float
    tpot_ms: float
    answer_ms: float
    usd_per_hour: float
    usd_per_month: float
    usd_per_mtok: float
    tokens_per_joule: float
    mean_kw: float
    peak_kw: float
    kg_co2_per_month: float | None
    binds: str
    basis: Basis
    prompt_tokens_per_s: float = 0.0  # that a replica would carry of prompts alone, for an autoscaler; 0: not told
    output_tokens_per_s: float = 0.0  # and of answers alone
    cp: int = 1  # groups of tp that share each context
    share_of_formula: float = 1.0  # of the greatest load by the formula that it is given; less where the twin asked


class Gain(Struct, frozen=True):
    """What relaxing one thing would bring."""

    what: str
    by: str
    effect: str  # in words
    usd_share: float  # relative change of dollars per token (or of the whole plan); negative: cheaper


class Explanation(Struct, frozen=True):
    """Why this choice: what binds, and what would relax it, strongest first."""

    binds: str
    why: str
    relax: tuple[Gain, ...]


class Check(Struct, frozen=True, kw_only=True):
    """A twin run beside the formula. Times in milliseconds, statistics as in the levels."""

    requests: int
    replicas: int  # simulated, with their share of the peak
    formula_ttft_ms: float
    twin_ttft_ms: float
    formula_tpot_ms: float
    twin_tpot_ms: float
    gap_ttft: float  # twin over formula, less 1
    gap_tpot: float
    attainment: float  # share of requests within the levels on TTFT and TPOT
    refused: int
    holds: bool  # the twin, too, is within the levels
    levels: bool = True  # whether there are any
    raised: int = 0  # replicas beyond the formula's, because the twin asked for them
    note: str = ""


class Leaving(Struct, frozen=True):
    """What the answers that leave a site cost in a month, beside the dollars of the plan."""

    site: str
    gb_per_month: float
    usd_per_month: float
    basis: str


class ModelAnswer(Struct, frozen=True, kw_only=True):
    """What to do for one model."""

    model: str
    shape: str
    levels: str
    chosen: tuple[Choice, ...]
    ranked: tuple[Choice, ...]  # the best of each accelerator, site and tier
    pareto: tuple[Choice, ...]
    by_tier: tuple[Choice, ...]  # the cheapest of each tier: cloud, owned, edge by total cost
    cloud: tuple[tuple[float, float, str], ...]  # ($ per Mtok, answer ms, accelerator) of all that were judged
    explained: Explanation
    checks: tuple[Check, ...] = ()  # of `chosen`, in order
    pays_back: str = ""  # after how long owned accelerators have paid for themselves, where both ways were asked


class NotJudged(Struct, frozen=True):
    """An accelerator that was left out, and why."""

    model: str
    accelerator: str
    site: str
    why: str


class TrainingAnswer(Struct, frozen=True, kw_only=True):
    """How to do a training job."""

    job: str
    site: str
    tier: str
    accelerator: str
    accelerators: int
    layout: str
    days: float
    usd: float
    usd_per_hour: float
    step_s: float
    mfu: float
    goodput: float
    checkpoint_interval_s: float
    mean_kw: float
    basis: str
    note: str
    binds: str
    spares: int = 0  # accelerators beside, for those that are being mended
    kg_co2: float | None = None  # of all of it, where the site's carbon is known
    ranked: tuple["TrainingAnswer", ...] = ()


class Sensitivity(Struct, frozen=True):
    """The plan under another assumption."""

    what: str
    usd_share: float | None  # relative change of dollars; None: no longer feasible
    changes: str  # of the choice; "" where it stays


class Conflict(Struct, frozen=True):
    """Limits that cannot all be kept: each is needed for the conflict."""

    limits: tuple[str, ...]
    relax: tuple[str, ...]  # any one of these would do, smallest first
    why: str


class Totals(Struct, frozen=True):
    """The whole plan. Dollars an hour and a month are serving's, `training_usd` all jobs', once."""

    usd_per_hour: float
    usd_per_month: float
    training_usd: float
    accelerators: int
    mean_mw: float
    peak_mw: float
    tonnes_co2_per_month: float | None
    tokens_per_s: float


class HourOfModel(Struct, frozen=True):
    """Requests per second of a model in one hour (UTC), by place."""

    model: str
    hour: int
    places: tuple[tuple[str, float], ...]


class Day(Struct, frozen=True, kw_only=True):
    """Work moved between sites and hours. Dollars are of electricity (of places rented by the hour: rent) for the
    requests themselves, without what idle machines draw; beside them the same with work spread by capacity."""

    by: str  # "price" | "carbon"
    usd_per_day: float
    usd_per_day_unshifted: float
    kg_co2_per_day: float | None
    kg_co2_per_day_unshifted: float | None
    moves: tuple[str, ...]
    hours: tuple[HourOfModel, ...]


class PlanReport(Struct, frozen=True, kw_only=True):
    """All of it."""

    name: str
    objective: str
    feasible: bool
    totals: Totals | None
    answers: tuple[ModelAnswer, ...]
    training: tuple[TrainingAnswer, ...]
    sensitivity: tuple[Sensitivity, ...]
    conflict: Conflict | None
    not_judged: tuple[NotJudged, ...]
    day: Day | None = None  # where hours differ, or work is flexible
    tight: tuple[Gain, ...] = ()  # limits of the plan that are nearly used up
    leaving: tuple[Leaving, ...] = ()  # of sites that say by what price answers leave
    filled: tuple[str, ...] = ()  # what sites' zones gave, in words
    seconds: float = 0.0
    checked: bool = False  # by twin runs: what is recommended, they confirmed
