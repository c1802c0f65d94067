"""What is asked: a request as the machines see it (counts and hashes, never text), and what came of it."""

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from baseload.domain.errors import Reason


class Endpoint(StrEnum):
    """The OpenAI route a request came by."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


class Tier(StrEnum):
    """A request's class of service, as OpenAI's `service_tier` names it; "auto" is default."""

    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"  # it waits until others have their pace

    @property
    def rank(self) -> int:
        """0 to 2: a higher one goes first."""
        return _TIER_RANKS[self.value]


_TIER_RANKS = {"flex": 0, "default": 1, "priority": 2}


class Request(Struct, frozen=True, array_like=True):
    """A request at the router. Prompt text never enters: the journal keeps counts and prefix hashes."""

    request_id: str  # "req_" + 24 hex digits; also the x-request-id
    key_id: str
    model: str
    endpoint: Endpoint
    prompt_tokens_estimate: int
    max_tokens: int  # n × the requested maximum, or an estimate where the client gave none
    deadline_ns: int  # wall time by which the first byte must be out; 0: the model's max_wait_ns applies
    stream: bool = False
    n: int = 1
    prefix_hashes: tuple[int, ...] = ()  # of growing prompt prefixes, for cache affinity; at most 8
    tier: Tier = Tier.DEFAULT


class TokenCounts(Struct, frozen=True, array_like=True):
    """Tokens of one request. `cached_in` is the part of `prompt` found in the prefix cache."""

    prompt: int = 0
    cached_in: int = 0
    completion: int = 0


class PhaseTimes(Struct, frozen=True, array_like=True):
    """Where a request's time in the worker went, as the worker measured it; zeros where it does not say."""

    queue_ns: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"  # by us, before any byte
    REJECTED = "rejected"  # by the worker, with a proper error (4xx) passed on to the client
    FAILED = "failed"
    CANCELLED = "cancelled"


class RequestEntry(Struct, frozen=True, tag="request", omit_defaults=True):
    """The ledger's record of one request, written once, when it ends. Times are wall nanoseconds.

    Its class of service is written where it is not "default", so entries from before there were classes read alike.
    """

    request_id: str
    key_id: str
    model: str
    endpoint: Endpoint
    replica_id: str  # "" where it never reached one
    outcome: Outcome
    reason: Reason | None
    arrived_ns: int
    dispatched_ns: int  # 0 where never
    first_byte_ns: int  # 0 where none was sent
    ended_ns: int
    attempts: int
    tokens: TokenCounts
    phases: PhaseTimes
    useful_ns: int  # its share of the replica's time; shares + idle + cold = replica time, exactly
    cost_nusd: int
    energy_uj: int
    energy_basis: str  # "rapl" | "nvml" | "modelled"
    tier: Tier = Tier.DEFAULT


class ReplicaEntry(Struct, frozen=True, tag="replica"):
    """The ledger's record of a span of one replica's life. Spans of a replica tile its life without gaps."""

    replica_id: str
    model: str
    from_ns: int
    to_ns: int
    cold_ns: int
    idle_ns: int
    useful_ns: int  # handed out to requests that ended or are still running in this span
    requests_ended: int
    final: bool  # the replica is gone after this span
    price_usd_per_hour: float
    idle_cost_nusd: int
    cold_cost_nusd: int
    idle_energy_uj: int
    cold_energy_uj: int
    energy_basis: str


class Decision(Struct, frozen=True, tag="decision"):
    """A choice with its reason, in words a newcomer understands."""

    at_ns: int
    what: str  # "start", "stop", "drain", "wake", "sleep", "scale_up", "retry", "refuse", "backoff", "adopt", …
    subject: str  # model, replica_id or request_id
    model: str
    why: str


Entry = RequestEntry | ReplicaEntry | Decision
MIXED = "mixed"


def joint_basis(labels: Iterable[str]) -> str:
    """What a sum of energies rests on: the label they share, "mixed" where they differ, "" where there is none."""
    distinct = sorted(dict.fromkeys(label for label in labels if label))
    return distinct[0] if len(distinct) == 1 else MIXED if distinct else ""
