"""How many replicas a model should have, and why: pure functions over one view.

Where it is known what one replica carries (tokens or requests a second: `baseload plan` says), replicas follow the
work that comes, which congestion does not inflate as it does counts of what is in flight: up at once, by the
mean over a minute or, nearly, the last seconds; down when fewer were enough for `scale_down_ns`. Queues and memory
still start more. Else it is by queues, memory and slack alone.
"""

import math

from msgspec import Struct

from baseload.domain.model import Scaling
from baseload.domain.units import NS_PER_S

PRESSED_NS = 3 * NS_PER_S  # pressure (KV use, queues inside the workers) must last so long to count
SLACK_LOAD = 0.5  # one replica fewer must be loaded no more than this, for idle_ns, before one is drained
SLACK_KV = 0.7  # and its KV use no more than this part of the target
WINDOW_NS = 60 * NS_PER_S  # over which the rate of requests is measured
QUICK_NS = 10 * NS_PER_S  # and the quick one, for bursts
QUICK_SHARE = 0.85  # of it counts: short counts scatter
LEAST_NS = 5 * NS_PER_S  # no rate is taken over less
MOST_WORK = 1e12  # replica-seconds that one request is said to take, at most


class ScalingView(Struct, frozen=True):
    """What the scaling policy may look at, for one model."""

    wanted: int  # replicas starting or ready, not draining
    ready: int
    queued: int  # in the router
    oldest_wait_ns: int
    in_flight: int
    capacity: int  # requests per replica
    idle_for_ns: int  # since the last request was here; 0 while one is
    pressed_for_ns: int  # how long `is_pressed` has held
    slack_for_ns: int  # how long `has_slack` has held
    since_scale_up_ns: int
    needed: int = 0  # replicas that the rate of requests needs; 0 too where it is not known what one carries
    most_needed: int = 0  # and the most it needed within `scale_down_ns`


class Choice(Struct, frozen=True):
    """The number of replicas to have. `what` names the change ("" for none), `why` explains it to people."""

    desired: int
    what: str = ""
    why: str = ""


def desired_replicas(view: ScalingView, scaling: Scaling) -> Choice:
    """The autoscaler's one decision."""
    low = scaling.min_replicas
    high = max(scaling.max_replicas, low)
    busy = view.queued + view.in_flight
    if view.wanted > high:
        return Choice(high, "scale_down", f"at most {high} replicas are allowed")
    if view.wanted < low:
        return Choice(low, "start", f"at least {low} replicas are kept")
    if view.wanted == 0:
        needed = min(high, -(-view.queued // view.capacity))
        who = "a request waits" if view.queued == 1 else f"{view.queued} requests wait"
        return Choice(needed, "wake", f"{who} and no worker runs") if needed else Choice(0)
    if busy == 0 and view.wanted > low and view.idle_for_ns >= scaling.idle_ns:
        return Choice(low, "sleep", f"no request for {_words(view.idle_for_ns)}")
    if view.needed > view.wanted and view.wanted < high:
        why = f"the requests that come need {view.needed} replicas at {_carried(scaling)} each"
        return Choice(min(high, view.needed), "scale_up", why)
    why = _why_more(view, scaling)
    if why and view.wanted < high and view.since_scale_up_ns >= scaling.scale_up_cooldown_ns:
        needed = min(-(-busy // view.capacity), 2 * view.wanted)
        return Choice(min(high, max(view.wanted + 1, needed)), "scale_up", why)
    if knows_capacity(scaling):
        enough = max(low, 1, view.most_needed)
        if enough < view.wanted and not why:
            why = f"{enough} replicas were enough for the requests of the last {_words(scaling.scale_down_ns)}"
            return Choice(enough, "scale_down", why)
        return Choice(view.wanted)
    if view.wanted > max(low, 1) and view.slack_for_ns >= scaling.idle_ns:
        fewer = max(low, view.wanted - _spare(view))
        words = _words(view.slack_for_ns)
        why = f"{view.wanted - 1} replicas have carried the load easily for {words}"
        if fewer < view.wanted - 1:
            why = f"fewer than {view.wanted} replicas have carried the load easily for {words}, {fewer} will"
        return Choice(fewer, "scale_down", why)
    return Choice(view.wanted)


def knows_capacity(scaling: Scaling) -> bool:
    """Whether it is known what one replica carries, in tokens or in requests."""
    return scaling.prompt_tokens_per_s > 0 or scaling.requests_per_s > 0


def work_of(*, requests: int, prompt_tokens: int, answer_tokens: float, scaling: Scaling) -> float:
    """Replica-seconds that these requests take, with answers of `answer_tokens` on average.

    In tokens where their capacities are known (a mix of longer prompts or answers then needs more), else in requests.
    At most `MOST_WORK`, so that sums of it are numbers however little a replica is said to carry.
    """
    if scaling.prompt_tokens_per_s > 0:
        of_answers = (
            requests * answer_tokens / scaling.output_tokens_per_s if scaling.output_tokens_per_s > 0 else 0.0
        )
        return min(prompt_tokens / scaling.prompt_tokens_per_s + of_answers, MOST_WORK)
    return min(requests / scaling.requests_per_s, MOST_WORK) if scaling.requests_per_s > 0 else 0.0


def replicas_needed(*, work: float, over_ns: int, quick_work: float, quick_ns: int) -> int:
    """Replicas for the work (replica-seconds) that came over the window and over the last seconds; 0: none came."""
    load = work * NS_PER_S / max(over_ns, LEAST_NS)
    quick = QUICK_SHARE * quick_work * NS_PER_S / max(quick_ns, LEAST_NS)
    return math.ceil(max(load, quick) - 1e-9)


def is_pressed(*, kv_usage: float, target_kv_usage: float, all_have_waiting: bool) -> bool:
    """Whether ready replicas are at their limit: mean KV use above target, or requests wait inside every one."""
    return kv_usage > target_kv_usage or all_have_waiting


def has_slack(*, replicas: int, load: int, capacity: int, kv_usage: float, target_kv_usage: float) -> bool:
    """Whether one replica fewer would do: load and KV use, spread over the rest, stay well below their limits."""
    rest = replicas - 1
    if rest < 1:
        return False
    return load <= SLACK_LOAD * capacity * rest and kv_usage * replicas / rest <= SLACK_KV * target_kv_usage


def _spare(view: ScalingView) -> int:
    """How many to give up at once: one; of many, up to an eighth, as far as the rest carries the load easily.

    `has_slack` has held for one fewer; an eighth fewer keeps KV use below its target (0.7 / (1 - 1/8) = 0.8 of it).
    """
    needed = -(-(view.queued + view.in_flight) // max(1, int(SLACK_LOAD * view.capacity)))
    return max(1, min(view.wanted // 8, view.wanted - needed))


def _why_more(view: ScalingView, scaling: Scaling) -> str:
    starting = view.wanted - view.ready
    if starting and view.queued <= starting * view.capacity:
        return ""  # those on their way will take the queue
    if view.queued and view.oldest_wait_ns > scaling.target_queue_delay_ns:
        target = _words(scaling.target_queue_delay_ns)
        return f"the oldest of {view.queued} waiting has waited {_words(view.oldest_wait_ns)}, target {target}"
    if view.queued > view.capacity * view.wanted:
        return f"{view.queued} wait, more than {view.wanted} replicas take at a time"
    if view.pressed_for_ns >= PRESSED_NS and not starting:
        return f"its replicas have been at their memory or batch limit for {_words(view.pressed_for_ns)}"
    return ""


def _carried(scaling: Scaling) -> str:
    if scaling.prompt_tokens_per_s > 0:
        return f"{scaling.prompt_tokens_per_s:,.0f} prompt tokens/s"
    return f"{scaling.requests_per_s:g}/s"


def _words(time_ns: int) -> str:
    value = time_ns / NS_PER_S
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
