"""The gateway as in `baseload up`, before a mock worker: real control machine, live driver, journal on disk.

    python bench/gateway/serve.py --workers http://127.0.0.1:9000 --replicas 4 --data-dir DIR

prints one line of JSON, {"port", "secret", "pid"}, once it takes requests. Authentication, rate limits, routing over
the replicas, ledger and journal are on. `--profile FILE` writes what cProfile saw when it ends.
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import signal
from pathlib import Path

import uvloop

from baseload.domain.events import KeyCreated, ModelPut, WorkerExited, WorkerReady, WorkerStarted
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.tenant import KeyLimits
from baseload.gateway.gateway import Gateway
from baseload.gateway.keys import make_key
from baseload.live.driver import LiveControl
from baseload.live.launcher import LauncherOptions
from baseload.live.run import ControlOptions, calm_collector, start_control
from baseload.net.client import Client
from baseload.net.server import serve


class MockLauncher:
    """Says that a worker has started, and means the mock."""

    def __init__(self, control: LiveControl, url: str) -> None:
        self._control = control
        self._url = url

    def start(self, replica_id: str, spec: ModelSpec) -> None:
        self._control.tell(WorkerStarted(replica_id, os.getpid(), self._url))
        self._control.tell(WorkerReady(replica_id, self._url))

    def stop(self, replica_id: str, grace_ns: int) -> None:
        self._control.tell(WorkerExited(replica_id, 0))


async def main(options: argparse.Namespace) -> None:
    launcher = LauncherOptions(cache_dir=options.data_dir)
    control = await start_control(options.data_dir, options=ControlOptions(launcher=launcher, seed=1, metered=False))
    control.attach(MockLauncher(control, options.workers))
    limits = KeyLimits(requests_per_minute=1_000_000_000, tokens_per_minute=1_000_000_000, max_in_flight=100_000)
    key, secret = make_key("bench", now_ns=control.now_ns(), limits=limits)
    await control.acknowledge(KeyCreated(key))
    scaling = Scaling(min_replicas=options.replicas, max_replicas=options.replicas)
    admission = Admission(max_concurrency_per_replica=256)
    await control.acknowledge(ModelPut(ModelSpec(name="mock", source="/mock", scaling=scaling, admission=admission)))
    client = Client()
    gateway = Gateway(control, client)
    server = await serve(gateway.handle, host="127.0.0.1", port=0)
    calm_collector()
    print(json.dumps({"port": server.port, "secret": secret, "pid": os.getpid()}), flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    await ended.wait()
    if options.profile:
        profile.disable()
        with options.profile.open("w") as file:
            pstats.Stats(profile, stream=file).sort_stats("tottime").print_stats(60)
    await server.close(1.0)
    await client.close()
    await control.stop(grace_s=1.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", required=True)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--profile", type=Path)
    uvloop.run(main(parser.parse_args()))
