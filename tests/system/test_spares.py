"""Spare processes: each becomes one worker, once; none outlives its keeper; without one everything still starts."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from baseload.domain.events import Event, WorkerExited, WorkerReady, WorkerStarted
from baseload.domain.model import EngineSpec, ModelSpec
from baseload.domain.units import NS_PER_S
from baseload.live.launcher import LauncherOptions, ProcessLauncher
from baseload.live.probe import Probe
from baseload.live.process import WorkerFiles, identify
from baseload.live.spares import SparePool
from baseload.net.client import Client

pytestmark = pytest.mark.system
ENGINE = EngineSpec(max_seqs=2, max_step_tokens=32, max_context=128)


class Keeper:
    """A launcher that keeps a spare, and what it tells."""

    def __init__(self, folder: Path, *, refill_s: float = 0.0) -> None:
        self.told: asyncio.Queue[Event] = asyncio.Queue()
        self.client = Client()
        options = LauncherOptions(cache_dir=folder / "cache", spares=1, spare_refill_s=refill_s, sample_s=60)
        folder = folder / "workers"
        self.launcher = ProcessLauncher(folder, tell=self.told.put_nowait, probe=Probe(self.client), options=options)
        self.folder = folder

    async def __aenter__(self) -> "Keeper":
        self.launcher.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.launcher.close(grace_s=5)
        await self.client.close()

    async def warm(self) -> int:
        """The pid of the spare, once it is ready."""
        async with asyncio.timeout(60):
            await self.launcher._spares.until_warm()
        return self.launcher.spares[0].pid

    async def hear(self, kind: type[Event]) -> Event:
        async with asyncio.timeout(60):
            while True:
                event = await self.told.get()
                if isinstance(event, kind):
                    return event


async def test_a_spare_becomes_one_model_once_and_the_next_takes_its_place(tmp_path: Path, tiny_model: Path) -> None:
    async with Keeper(tmp_path) as keeper:
        spare = await keeper.warm()
        status = keeper.launcher.spares[0]
        assert status.is_warm
        assert 50 << 20 < status.memory_bytes < 1 << 30
        keeper.launcher.start("tiny-1", ModelSpec(name="tiny", source=str(tiny_model), engine=ENGINE))
        assert keeper.launcher.spares == ()  # it is not there for a second one
        assert (await keeper.hear(WorkerStarted)).pid == spare
        files = WorkerFiles(keeper.folder, "tiny-1")
        assert files.read_registration().process == identify(spare)
        ready = await keeper.hear(WorkerReady)
        health = json.loads((await keeper.client.request("GET", f"{ready.url}/health", timeout_s=60)).body)
        assert (health["model"], health["replica_id"], health["pid"]) == ("tiny", "tiny-1", spare)
        assert files.log_tail().startswith('{"ready":')  # it prints into its own log now
        assert str(Path(f"/proc/{spare}/fd/0").readlink()) == os.devnull
        assert await keeper.warm() != spare
        keeper.launcher.stop("tiny-1", 60 * NS_PER_S)
        assert (await keeper.hear(WorkerExited)).exit_code == 0
    assert list(keeper.folder.iterdir()) == []


async def test_a_spare_with_another_number_of_threads_is_passed_over_and_replaced(
    tmp_path: Path, tiny_model: Path
) -> None:
    async with Keeper(tmp_path) as keeper:
        spare = await keeper.warm()
        engine = EngineSpec(max_seqs=2, max_step_tokens=32, max_context=128, threads=1)
        keeper.launcher.start("tiny-1", ModelSpec(name="tiny", source=str(tiny_model), engine=engine))
        assert (await keeper.hear(WorkerStarted)).pid != spare
        assert await keeper.warm() == spare  # until the refill that comes next
        await keeper.hear(WorkerReady)
        assert await keeper.warm() != spare
        words = Path(f"/proc/{keeper.launcher.spares[0].pid}/cmdline").read_bytes().split(b"\0")
        assert words[words.index(b"--threads") + 1] == b"1"


async def test_a_model_that_cannot_be_served_ends_the_spare_with_its_reason(tmp_path: Path) -> None:
    async with Keeper(tmp_path, refill_s=0.0) as keeper:
        spare = await keeper.warm()
        keeper.launcher.start("odd-1", ModelSpec(name="odd", source=str(tmp_path / "nothing")))
        assert (await keeper.hear(WorkerStarted)).pid == spare
        exited = await keeper.hear(WorkerExited)
        assert exited.exit_code == 1
        assert "nothing" in exited.detail


KEEPER = """
import asyncio, sys
from pathlib import Path
from baseload.live.spares import SparePool

async def main():
    pool = SparePool(Path({folder!r}), count=1, refill_s=0.0)
    pool.open()
    {until}
    print(pool.statuses[0].pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("until", ["await pool.until_warm()", "await asyncio.sleep(0.01)"], ids=["warm", "importing"])
def test_a_spare_ends_with_its_keeper(tmp_path: Path, until: str) -> None:
    code = KEEPER.format(folder=str(tmp_path), until=until)
    keeper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    pidfd = os.pidfd_open(int(keeper.stdout.readline()))
    keeper.kill()
    keeper.communicate()
    assert select.select([pidfd], [], [], 60)[0], "the spare is still there"
    os.close(pidfd)


def fake(code: str) -> list[str]:
    """A command that is soon warm and then does as told."""
    return [sys.executable, "-S", "-E", "-c", f"import os, sys, time; {code}"]


async def test_one_that_dies_is_replaced_and_one_that_never_lives_is_given_up(tmp_path: Path) -> None:
    pool = SparePool(tmp_path, count=1, command=fake("os.write(1, b'warm\\n'); sys.stdin.read()"), refill_s=0.0)
    pool.open()
    async with asyncio.timeout(60):
        await pool.until_warm()
        first = pool.statuses[0].pid
        os.kill(first, signal.SIGKILL)
        while not pool.statuses or pool.statuses[0].pid == first:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await pool.until_warm()
    pool.close()
    assert identify(first) is None

    pool = SparePool(
        tmp_path, count=1, command=fake("os.close(1); print('no such luck', file=sys.stderr)"), refill_s=0
    )
    pool.open()
    async with asyncio.timeout(60):
        while pool._failures < 5:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert pool.statuses == ()
    assert pool._refill_handle is None or pool._refill_handle.when() <= asyncio.get_running_loop().time()
    pool.close()


async def test_one_that_does_not_take_its_work_is_told_at_once(tmp_path: Path) -> None:
    pool = SparePool(
        tmp_path, count=1, command=fake("os.close(0); os.write(1, b'warm\\n'); time.sleep(60)"), refill_s=0
    )
    pool.open()
    async with asyncio.timeout(60):
        await pool.until_warm()
    assert pool.take(2) is None  # it has another number of threads
    spare = pool.take(0)
    assert spare is not None
    with pytest.raises(BrokenPipeError):
        spare.become(["--model", "x"], log=tmp_path / "log")
    assert pool.take(0) is None
    spare.child.kill()
    spare.child.wait()
    os.close(spare.pidfd)
    pool.close()
