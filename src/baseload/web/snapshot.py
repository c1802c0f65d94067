"""What the dashboard shows, as one value: pure functions from the control machine's view to figures and words."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.fleet import ReplicaState
from baseload.domain.model import ModelSpec
from baseload.domain.status import ControlStatus, ModelStatus, ReplicaStatus
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_MS, NS_PER_S, NUSD_PER_USD, UJ_PER_J
from baseload.domain.work import Tier, joint_basis

ALIVE = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.STOPPING)
KEYS_SHOWN = 50


class History(Struct, frozen=True):
    """The last minutes, one figure each `step_s` seconds, oldest first."""

    step_s: float
    tokens_per_s: tuple[float, ...]
    in_flight: tuple[int, ...]
    queued: tuple[int, ...]
    power_w: tuple[float, ...]
    usd_per_hour: tuple[float, ...]


class ReplicaCard(Struct, frozen=True):
    """One running copy of a model."""

    replica_id: str
    state: str
    says: str
    in_flight: int
    waiting: int
    kv_usage: float
    power_w: float
    basis: str


class ModelCard(Struct, frozen=True):
    """One model, with a sentence on how it is and what happens next."""

    name: str
    state: str
    says: str
    error: str
    in_flight: int
    queued: int
    requests_total: int
    tokens_total: int
    usd_per_hour: float
    context_tokens: int
    replicas: tuple[ReplicaCard, ...]


class Today(Struct, frozen=True):
    """Since midnight UTC."""

    requests: int
    failed: int
    tokens: int
    usd: float
    joules: float
    useful_s: float
    idle_s: float
    cold_s: float
    basis: str
    usd_per_million_tokens: float | None
    tokens_per_joule: float | None


class ClassUse(Struct, frozen=True):
    """What one class of service of a key's requests came to."""

    tier: str  # "" for requests counted before there were classes
    requests: int


class KeyLine(Struct, frozen=True):
    """A key, its class of service, and what was asked with it since midnight UTC."""

    key_id: str
    name: str
    begins: str  # the first characters of its secret
    tier: str  # the highest class it may ask for, and its own where it asks for none; "" where it is revoked
    is_admin: bool
    is_revoked: bool
    requests: int
    failed: int
    tokens: int
    usd: float
    joules: float
    classes: tuple[ClassUse, ...]  # its requests by the class they had, the highest first


class DecisionLine(Struct, frozen=True):
    """A choice the system made, and why."""

    seq: int
    at_ms: int
    what: str
    model: str
    why: str


class Snapshot(Struct, frozen=True):
    """Everything on the page at one instant."""

    now_ms: int
    started_ms: int
    version: str
    headline: str
    in_flight: int
    queued: int
    oldest_wait_s: float
    requests_total: int
    requests_last_minute: int
    refused_total: int
    tokens_per_s: float
    power_w: float
    power_basis: str
    usd_per_hour: float
    shutting_down: bool
    models: tuple[ModelCard, ...]
    history: History
    today: Today | None
    keys: tuple[KeyLine, ...]  # those asked with most today come first
    keys_total: int
    decisions: tuple[DecisionLine, ...]


def take(
    status: ControlStatus,
    specs: Sequence[ModelSpec],
    *,
    version: str,
    history: History,
    requests_last_minute: int,
    wake_ns: Mapping[str, int],
    keys: Sequence[Key],
    usage: Sequence[UsageRow] | None,
    decisions: Sequence[JournalRow],
) -> Snapshot:
    """The page's value. `wake_ns`: how long each model's last start took, where one was seen."""
    by_name = {spec.name: spec for spec in specs}
    models = tuple(_model_card(model, status, by_name.get(model.name), wake_ns) for model in status.models)
    dollars = usd_per_hour(status, by_name)
    lines = key_lines(keys, usage or ())
    return Snapshot(
        now_ms=status.now_ns // NS_PER_MS,
        started_ms=status.started_ns // NS_PER_MS,
        version=version,
        headline=headline(status, dollars),
        in_flight=status.in_flight,
        queued=status.queued,
        oldest_wait_s=max((model.oldest_wait_ns for model in status.models), default=0) / NS_PER_S,
        requests_total=status.requests_total,
        requests_last_minute=requests_last_minute,
        refused_total=status.refused_total,
        tokens_per_s=history.tokens_per_s[-1] if history.tokens_per_s else 0.0,
        power_w=power_w(status),
        power_basis=joint_basis([replica.energy_basis for replica in status.replicas if replica.state in ALIVE]),
        usd_per_hour=dollars,
        shutting_down=status.shutting_down,
        models=models,
        history=history,
        today=None if usage is None else today(usage),
        keys=tuple(lines[:KEYS_SHOWN]),
        keys_total=len(lines),
        decisions=tuple(decision_line(row) for row in reversed(decisions)),
    )


def headline(status: ControlStatus, dollars_per_hour: float) -> str:
    """Two or three plain sentences: what is up, what waits, what it costs now."""
    if status.shutting_down:
        return f"Stopping: {_count(status.in_flight, 'running request')} may finish first."
    if not status.models:
        return "No model yet. Add one with “baseload models add”."
    awake = sum(model.state in ("awake", "remote", "draining") for model in status.models)
    waking = sum(model.state == "waking" for model in status.models)
    asleep = sum(model.state == "asleep" for model in status.models)
    ill = sum(model.state == "backing off" for model in status.models)
    parts = [(awake, "awake"), (waking, "waking"), (asleep, "asleep"), (ill, "failing to start")]
    named = [(n, word) for n, word in parts if n]
    if len(status.models) == 1:
        first = f"The model {status.models[0].name} is {named[0][1] if named else 'here'}."
    else:
        first = _join([f"{_number(n)} {word}" for n, word in named]) + "."
    if status.queued:
        second = f"{_count(status.queued, 'request')} waiting, {_number(status.in_flight)} running."
    elif status.in_flight:
        second = f"{_count(status.in_flight, 'request')} running, none waiting."
    else:
        second = "Nothing is waiting."
    cost = "It costs nothing right now." if dollars_per_hour == 0 else f"It costs ${dollars_per_hour:.2f} an hour."
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in (first, second, cost))


def _model_card(
    model: ModelStatus, status: ControlStatus, spec: ModelSpec | None, wake_ns: Mapping[str, int]
) -> ModelCard:
    replicas = [replica for replica in status.replicas if replica.model == model.name]
    alive = [replica for replica in replicas if replica.state in ALIVE]
    price = spec.price.usd_per_hour if spec is not None and not spec.is_remote else 0.0
    return ModelCard(
        name=model.name,
        state=model.state,
        says=model_says(model, spec, now_ns=status.now_ns, wake_ns=wake_ns.get(model.name, 0)),
        error=model.last_error if model.state == "backing off" or model.crashes else "",
        in_flight=model.in_flight,
        queued=model.queued,
        requests_total=model.requests_total,
        tokens_total=model.prompt_tokens_total + model.completion_tokens_total,
        usd_per_hour=price * len(alive),
        context_tokens=spec.context_tokens if spec is not None else 0,
        replicas=tuple(_replica_card(replica, status.now_ns) for replica in alive),
    )


def model_says(model: ModelStatus, spec: ModelSpec | None, *, now_ns: int, wake_ns: int = 0) -> str:
    """One sentence for a newcomer: how the model is, and what happens next."""
    waiting = f"{_count(model.queued, 'request')} {'waits' if model.queued == 1 else 'wait'} for it"
    failed = "once" if model.crashes <= 1 else f"{model.crashes} times in a row"
    match model.state:
        case "asleep" if model.crashes:
            return f"Asleep after its worker failed {failed}. The next request tries again."
        case "asleep":
            last = f" (the last time in {span(wake_ns)})" if wake_ns else ""
            return f"Asleep: it costs nothing. Send it a request and it wakes{last}."
        case "waking":
            return f"Waking: a worker loads its weights. {waiting if model.queued else 'Nothing waits for it'}."
        case "backing off":
            retry = max(0, model.retry_at_ns - now_ns)
            return f"Its worker failed {failed}. Next try in {span(retry)}; {waiting}."
        case "draining":
            return f"Going to sleep: {_count(model.in_flight, 'running request')} may finish first."
        case "remote":
            return "Served by somebody else's worker, always on."
        case _:
            busy = f"Working on {_count(model.in_flight, 'request')}" if model.in_flight else "Awake and idle"
            busy += f", {waiting}" if model.queued else ""
            return f"{busy}. {_sleep_rule(model, spec)}".strip()


def _sleep_rule(model: ModelStatus, spec: ModelSpec | None) -> str:
    if spec is None or spec.is_remote:
        return ""
    if spec.scaling.min_replicas:
        return f"At least {_count(spec.scaling.min_replicas, 'replica')} always stays up."
    return f"It goes to sleep after {span(spec.scaling.idle_ns)} without a request."


def _replica_card(replica: ReplicaStatus, now_ns: int) -> ReplicaCard:
    age = span(max(0, now_ns - replica.since_ns))
    words = {
        ReplicaState.STARTING: f"starting for {age}",
        ReplicaState.READY: f"{_count(replica.in_flight, 'request')} now"
        if replica.in_flight
        else f"ready for {age}",
        ReplicaState.DRAINING: f"finishing {_count(replica.in_flight, 'request')}, then it stops",
        ReplicaState.STOPPING: "stopping",
    }
    return ReplicaCard(
        replica_id=replica.replica_id,
        state=replica.state,
        says=words.get(replica.state, replica.state),
        in_flight=replica.in_flight,
        waiting=replica.sample.waiting,
        kv_usage=replica.sample.kv_usage,
        power_w=replica.power_w,
        basis=replica.energy_basis,
    )


def today(rows: Sequence[UsageRow]) -> Today:
    """Totals of usage rows."""
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    usd = sum(row.cost_nusd for row in rows) / NUSD_PER_USD
    joules = sum(row.energy_uj for row in rows) / UJ_PER_J
    return Today(
        requests=sum(row.requests for row in rows),
        failed=sum(row.failed for row in rows),
        tokens=tokens,
        usd=usd,
        joules=joules,
        useful_s=sum(row.useful_ns for row in rows) / NS_PER_S,
        idle_s=sum(row.idle_ns for row in rows) / NS_PER_S,
        cold_s=sum(row.cold_ns for row in rows) / NS_PER_S,
        basis=joint_basis([row.energy_basis for row in rows if row.energy_uj]),
        usd_per_million_tokens=usd / tokens * 1e6 if tokens else None,
        tokens_per_joule=tokens / joules if tokens and joules else None,
    )


def key_lines(keys: Sequence[Key], rows: Sequence[UsageRow]) -> list[KeyLine]:
    """All keys that are not revoked, and revoked ones that were used; those used most first."""
    used: dict[str, list[UsageRow]] = {}
    for row in rows:
        if row.key_id:
            used.setdefault(row.key_id, []).append(row)
    lines = [_key_line(key.key_id, key.name, key, used.pop(key.key_id, [])) for key in keys]
    lines += [_key_line(key_id, of[0].key_name, None, of) for key_id, of in used.items()]
    return sorted(lines, key=lambda line: -line.requests)


def _key_line(key_id: str, name: str, key: Key | None, rows: Sequence[UsageRow]) -> KeyLine:
    asked: dict[str, int] = {}
    for row in rows:
        asked[row.tier] = asked.get(row.tier, 0) + row.requests
    order = sorted(asked, key=lambda tier: -Tier(tier).rank if tier else 1)
    return KeyLine(
        key_id=key_id,
        name=name,
        begins=key.prefix if key is not None else "",
        tier=key.tier.value if key is not None else "",
        is_admin=key is not None and key.is_admin,
        is_revoked=key is None,
        requests=sum(asked.values()),
        failed=sum(row.failed for row in rows),
        tokens=sum(row.prompt_tokens + row.completion_tokens for row in rows),
        usd=sum(row.cost_nusd for row in rows) / NUSD_PER_USD,
        joules=sum(row.energy_uj for row in rows) / UJ_PER_J,
        classes=tuple(ClassUse(tier, asked[tier]) for tier in order),
    )


def decision_line(row: JournalRow) -> DecisionLine:
    """A journal record of a decision as a line on the page."""
    return DecisionLine(
        seq=row.seq,
        at_ms=row.at_ns // NS_PER_MS,
        what=str(row.body.get("what", row.kind)),
        model=str(row.body.get("model", "")),
        why=str(row.body.get("why", "")),
    )


def usd_per_hour(status: ControlStatus, specs: Mapping[str, ModelSpec]) -> float:
    """What the replicas that exist now cost."""
    return sum(
        specs[replica.model].price.usd_per_hour
        for replica in status.replicas
        if replica.state in ALIVE and replica.model in specs and not specs[replica.model].is_remote
    )


def power_w(status: ControlStatus) -> float:
    """What the replicas that exist now draw."""
    return sum(replica.power_w for replica in status.replicas if replica.state in ALIVE)


def span(duration_ns: int) -> str:
    """A duration as people say it: 0.4 s, 12 s, 5 min, 2 h."""
    seconds = duration_ns / NS_PER_S
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _count(number: int, noun: str) -> str:
    return f"{_number(number)} {noun}" if number == 1 else f"{_number(number)} {noun}s"


def _number(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number] if number < len(words) else str(number)


def _join(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""
