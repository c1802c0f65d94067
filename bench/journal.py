"""What one event costs in the live driver: clock, machine, journal and actions, and what the machine alone costs.

    python bench/journal.py [--requests 20000] [--profile]

Prints microseconds per event and per request (three events: arrived, first byte, finished), with the committing
thread running beside it, and the time to recover the same directory. The work is done in one process on one core's
worth of time; `cpu` counts both threads.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import shutil
import tempfile
import time
from pathlib import Path

from baseload.core.control import ControlMachine
from baseload.domain.actions import Dispatch, Refuse
from baseload.domain.events import (
    ControlStarted,
    FirstByteSent,
    KeyCreated,
    ModelPut,
    RequestArrived,
    RequestFinished,
)
from baseload.domain.model import Admission, ModelSpec
from baseload.domain.tenant import Key
from baseload.domain.work import Endpoint, Outcome, PhaseTimes, Request, TokenCounts
from baseload.live.launcher import LauncherOptions
from baseload.live.run import ControlOptions, open_offline, start_control

SPEC = ModelSpec(name="m", source="http://127.0.0.1:9", admission=Admission(max_concurrency_per_replica=256))
KEY = Key(key_id="key_0123456789ab", name="bench", secret_sha256="0" * 64, created_ns=1)


class Sink:
    """Answers at once."""

    def __init__(self) -> None:
        self.dispatched = 0

    def dispatch(self, action: Dispatch) -> None:
        """Count it."""
        self.dispatched += 1

    def refuse(self, action: Refuse) -> None:
        """Not expected here."""
        raise AssertionError(action)


def request(number: int) -> Request:
    """A request as the gateway makes it."""
    hashes = tuple((number * 2_654_435_761 + i) & 0xFFFF_FFFF_FFFF for i in range(4))
    return Request(f"req_{number:024x}", KEY.key_id, "m", Endpoint.CHAT, 120, 256, 0, True, 1, hashes)


def finished(request_id: str) -> RequestFinished:
    """Its end."""
    return RequestFinished(request_id, Outcome.OK, None, TokenCounts(120, 64, 200), PhaseTimes(1_000, 2_000, 3_000))


async def drive(folder: Path, count: int, in_flight: int, profile: cProfile.Profile | None) -> tuple[float, float]:
    """Seconds of wall and of processor time for `count` requests through the driver."""
    options = ControlOptions(launcher=LauncherOptions(cache_dir=folder), metered=False)
    control = await start_control(folder, options=options)
    await control.acknowledge(KeyCreated(KEY))
    await control.acknowledge(ModelPut(SPEC))
    requests = [request(number) for number in range(count)]
    sink = Sink()
    started, cpu = time.perf_counter(), time.process_time()
    if profile is not None:
        profile.enable()
    for at in range(0, count, in_flight):
        some = requests[at : at + in_flight]
        for one in some:
            control.open(one, sink)
        for one in some:
            control.tell(FirstByteSent(one.request_id))
        for one in some:
            control.tell(finished(one.request_id))
            control.settle()
        await asyncio.sleep(0)
    if profile is not None:
        profile.disable()
    wall = time.perf_counter() - started
    await control.sync()
    cpu = time.process_time() - cpu
    assert sink.dispatched == count, sink.dispatched
    # Leave the directory as a killed process would: nothing is snapshotted after the requests.
    os.sync()
    shutil.copytree(folder, folder.with_name("killed"))
    await control.stop(1.0)
    return wall, cpu


def machine_alone(count: int, in_flight: int) -> float:
    """Seconds for the same steps without journal and driver."""
    machine = ControlMachine(seed=1)
    now = time.time_ns()
    for event in (ControlStarted("1", 1), KeyCreated(KEY), ModelPut(SPEC)):
        machine.step(now, event)
    requests = [request(number) for number in range(count)]
    started = time.perf_counter()
    for at in range(0, count, in_flight):
        some = requests[at : at + in_flight]
        for one in some:
            machine.step(time.time_ns(), RequestArrived(one))
        for one in some:
            machine.step(time.time_ns(), FirstByteSent(one.request_id))
        for one in some:
            machine.step(time.time_ns(), finished(one.request_id))
    return time.perf_counter() - started


async def recovery(folder: Path) -> tuple[float, int]:
    """Seconds to open the directory that a killed process left, and its last seq."""
    started = time.perf_counter()
    async with open_offline(folder) as control:
        return time.perf_counter() - started, control.seq


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    count, in_flight = chosen.requests, chosen.in_flight
    profile = cProfile.Profile() if chosen.profile else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        wall, cpu = asyncio.run(drive(folder, count, in_flight, profile))
        opened, seq = asyncio.run(recovery(folder.with_name("killed")))
    alone = machine_alone(count, in_flight)
    for label, seconds in (("driver, wall", wall), ("driver, cpu of both threads", cpu), ("machine alone", alone)):
        print(f"{label:30} {seconds / count * 1e6:8.1f} µs/request {seconds / count / 3 * 1e6:7.2f} µs/event")
    print(f"{'requests/s (wall)':30} {count / wall:8.0f}")
    print(f"{'recovery':30} {opened * 1e3:8.0f} ms to seq {seq}")
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
