"""What the fleet looks at before it scales: a crew's load, crashes, view for the policy, and whom it can spare."""

from baseload.core.lanes import Lane, Seat
from baseload.core.lifecycle import DRAINING, READY, Crew, Replica
from baseload.domain.model import ModelSpec
from baseload.domain.units import NS_PER_S
from baseload.policy.healing import ends_crash_row
from baseload.policy.scaling import (
    QUICK_NS,
    WINDOW_NS,
    ScalingView,
    has_slack,
    is_pressed,
    knows_capacity,
    replicas_needed,
    work_of,
)


def scaling_view(crew: Crew, lane: Lane, *, oldest_wait_ns: int, now_ns: int) -> ScalingView:
    """What the scaling policy may look at."""
    wanted = crew.wanted
    return ScalingView(
        wanted=count_wanted(crew),
        ready=len([True for replica in wanted if replica.state is READY and replica.confirmed]),
        queued=lane.waiting,
        oldest_wait_ns=oldest_wait_ns,
        in_flight=lane.in_flight - lane.waiting,
        capacity=crew.spec.admission.max_concurrency_per_replica,
        idle_for_ns=0 if lane.in_flight else now_ns - lane.active_ns,
        pressed_for_ns=now_ns - crew.pressed_since_ns if crew.pressed_since_ns >= 0 else 0,
        slack_for_ns=now_ns - crew.slack_since_ns if crew.slack_since_ns >= 0 else 0,
        since_scale_up_ns=now_ns - crew.scaled_up_ns,
        needed=crew.needs[-1][1] if crew.needs else 0,
        most_needed=max((needed for _, needed in crew.needs), default=0),
    )


def watch_demand(crew: Crew, lane: Lane, now_ns: int) -> None:
    """Note how many replicas the requests that come need, where it is known what one carries."""
    scaling = crew.spec.scaling
    if not knows_capacity(scaling):
        crew.arrived, crew.tokens, crew.needs = [], [], []
        return
    arrived, tokens = crew.arrived, crew.tokens
    seen = (lane.asked_tokens_total, lane.completion_tokens_total, lane.requests_total - lane.in_flight)
    tokens += [seen] * (len(arrived) - len(tokens))  # a snapshot of before they were counted
    if not arrived or now_ns - arrived[-1][0] >= NS_PER_S:
        arrived.append((now_ns, lane.requests_total))
        tokens.append(seen)
    while len(arrived) > 1 and arrived[1][0] <= now_ns - WINDOW_NS:
        del arrived[0], tokens[0]
    last = len(arrived) - 1
    quick = next(i for i, entry in enumerate(arrived) if entry[0] >= now_ns - QUICK_NS or i == last)
    answer = mean_answer(tokens[0], seen)

    def work(since: int) -> float:
        return work_of(
            requests=lane.requests_total - arrived[since][1],
            prompt_tokens=seen[0] - tokens[since][0],
            answer_tokens=answer,
            scaling=scaling,
        )

    needed = replicas_needed(
        work=work(0),
        over_ns=now_ns - arrived[0][0],
        quick_work=work(quick),
        quick_ns=now_ns - arrived[quick][0],
    )
    needs = [(at_ns, n) for at_ns, n in crew.needs if at_ns > now_ns - scaling.scale_down_ns and n > needed]
    crew.needs = [*needs, (now_ns, needed)]


def mean_answer(before: tuple[int, int, int], now: tuple[int, int, int]) -> float:
    """Output tokens of a request: of those ended since `before`, else of all so far; 0 where none has ended."""
    made, ended = now[1] - before[1], now[2] - before[2]
    if ended <= 0:
        made, ended = now[1], now[2]
    return made / ended if ended > 0 else 0.0


def count_wanted(crew: Crew) -> int:
    """How many replicas serve or will, without the one that is on its way to replace an outdated one."""
    wanted = crew.wanted
    old = outdated(wanted, crew.spec)
    if not old:
        return len(wanted)
    fresh = [replica for replica in wanted if not needs_restart(replica.spec, crew.spec)]
    return len(wanted) - any(replica.state is not READY for replica in fresh)


def watch_load(crew: Crew, lane: Lane, seats: dict[str, Seat], now_ns: int) -> None:
    """Note since when the ready replicas have been pressed, or one too many."""
    ready, total, all_wait = 0, 0.0, True
    for replica in crew.replicas:  # at each report of each replica: one plain loop
        if replica.state is READY and replica.replica_id in seats:
            ready += 1
            total += replica.sample.kv_usage
            all_wait = all_wait and replica.sample.waiting > 0
    scaling, kv_usage, all_wait = crew.spec.scaling, total / ready if ready else 0.0, all_wait and ready > 0
    pressed = is_pressed(kv_usage=kv_usage, target_kv_usage=scaling.target_kv_usage, all_have_waiting=all_wait)
    slack = not pressed and has_slack(
        replicas=ready,
        load=lane.in_flight,
        capacity=crew.spec.admission.max_concurrency_per_replica,
        kv_usage=kv_usage,
        target_kv_usage=scaling.target_kv_usage,
    )
    crew.pressed_since_ns = _since(crew.pressed_since_ns, pressed, now_ns)
    crew.slack_since_ns = _since(crew.slack_since_ns, slack, now_ns)


def crashes_in_a_row(crew: Crew, now_ns: int) -> int:
    """How many crashes, unless a replica has proved since the last one that the model works."""
    if crew.crashes and any(
        replica.state in (READY, DRAINING) and proves_well(crew, replica, now_ns) for replica in crew.replicas
    ):
        return 0
    return crew.crashes


def proves_well(crew: Crew, replica: Replica, now_ns: int, *, ended_in_order: bool = False) -> bool:
    """Whether this replica's time since the last crash, and the backing off after it, ends the row."""
    if not replica.was_ready or not replica.confirmed or replica.suspect:
        return False
    since_ns = max(replica.ready_ns, crew.crashed_ns, crew.retry_at_ns)
    return ends_crash_row(
        served_ns=now_ns - since_ns, answered=replica.answered_ns >= since_ns, ended_in_order=ended_in_order
    )


def by_worth(replicas: list[Replica], spec: ModelSpec, seats: dict[str, Seat]) -> list[Replica]:
    """Least worth keeping first: outdated, then not ready, then the least loaded, then the youngest."""

    def worth(replica: Replica) -> tuple[bool, bool, int, int]:
        seat = seats.get(replica.replica_id)
        load = len(seat.running) if seat is not None else 0
        return (not needs_restart(replica.spec, spec), replica.state is READY, load, -replica.started_ns)

    return sorted(replicas, key=worth)


def outdated(replicas: list[Replica], spec: ModelSpec) -> list[Replica]:
    """Those that cannot serve `spec` as they are."""
    return [replica for replica in replicas if replica.spec is not spec and needs_restart(replica.spec, spec)]


def needs_restart(old: ModelSpec, new: ModelSpec) -> bool:
    """Whether a replica of `old` cannot serve `new` as it is."""
    if old is new:
        return False
    return old.source != new.source or old.engine != new.engine or old.context_tokens != new.context_tokens


def most_replicas(spec: ModelSpec) -> int:
    """How many replicas the model may have, in whatever state."""
    return 1 if spec.is_remote else max(spec.scaling.max_replicas, spec.scaling.min_replicas)


def _since(since_ns: int, holds: bool, now_ns: int) -> int:
    if not holds:
        return -1
    return since_ns if since_ns >= 0 else now_ns
