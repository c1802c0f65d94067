"""How fast the control machine is: events per second through `step`, and microseconds per served request.

    python bench/core/machines.py [--requests 200000] [--replicas 4] [--profile]

A request costs three events (arrived, first byte, finished). Nothing is journaled; the driver adds that.
"""

import argparse
import cProfile
import gc
import pstats
import time

from baseload.core.control import ControlMachine
from baseload.domain.actions import Dispatch, StartWorker
from baseload.domain.events import (
    ControlStarted,
    FirstByteSent,
    KeyCreated,
    ModelPut,
    RequestArrived,
    RequestFinished,
    WorkerReady,
)
from baseload.domain.model import ModelSpec, Scaling
from baseload.domain.tenant import Key, KeyLimits
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.domain.work import Endpoint, Outcome, PhaseTimes, Request, TokenCounts

START_NS = 1_790_000_000 * NS_PER_S


def awake(replicas: int) -> ControlMachine:
    """A control machine with one model, so many ready replicas, and one key with limits."""
    machine = ControlMachine(seed=1)
    machine.step(START_NS, ControlStarted(machine.policy_version, 1))
    limits = KeyLimits(requests_per_minute=10**9, tokens_per_minute=10**12, max_in_flight=100_000)
    machine.step(START_NS, KeyCreated(Key("key_1", "bench", "00" * 32, START_NS, limits=limits)))
    spec = ModelSpec("guide", "/models/guide", scaling=Scaling(min_replicas=replicas, max_replicas=replicas))
    for action in machine.step(START_NS, ModelPut(spec)):
        if isinstance(action, StartWorker):
            machine.step(START_NS, WorkerReady(action.replica_id, "http://127.0.0.1:9"))
    return machine


def serve(machine: ControlMachine, requests: int, in_flight: int) -> int:
    """Send requests through, `in_flight` at a time; returns the number of events."""
    tokens, phases = TokenCounts(100, 0, 50), PhaseTimes(1, 2, 3)
    now_ns, open_ids, events = START_NS + NS_PER_S, [], 0
    for number in range(requests):
        now_ns += NS_PER_MS // 10
        request_id = f"req_{number:024x}"
        prefixes = (number % 1000, number % 1000 + 1_000_000, number)
        request = Request(request_id, "key_1", "guide", Endpoint.CHAT, 100, 50, 0, prefix_hashes=prefixes)
        actions = machine.step(now_ns, RequestArrived(request))
        assert any(type(action) is Dispatch for action in actions)
        machine.step(now_ns + 10, FirstByteSent(request_id))
        open_ids.append(request_id)
        events += 2
        if len(open_ids) == in_flight:
            machine.step(now_ns + 20, RequestFinished(open_ids.pop(0), Outcome.OK, None, tokens, phases))
            events += 1
    return events


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    machine = awake(args.replicas)
    serve(machine, 2_000, args.in_flight)
    machine = awake(args.replicas)
    gc.freeze()
    profile = cProfile.Profile() if args.profile else None
    if profile:
        profile.enable()
    began = time.process_time()
    events = serve(machine, args.requests, args.in_flight)
    spent_s = time.process_time() - began
    if profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    print(
        f"{args.replicas} replicas: {events / spent_s:,.0f} events/s, "
        f"{spent_s / args.requests * 1e6:.1f} us of CPU per request"
    )
    began = time.process_time()
    size = len(machine.snapshot())
    spent_ms = (time.process_time() - began) * 1e3
    print(f"snapshot with {args.in_flight} open requests: {size:,} bytes in {spent_ms:.1f} ms")


if __name__ == "__main__":
    main()
