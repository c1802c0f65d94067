"""Worker processes: started, noticed at once, watched, ended, adopted; with a tiny worker in place of an engine."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from baseload.domain.errors import NetError
from baseload.domain.events import WorkerExited, WorkerReady, WorkerSampled, WorkerStarted
from baseload.domain.fleet import ReplicaState, WorkerSample
from baseload.domain.model import ModelSpec
from baseload.domain.status import ReplicaStatus
from baseload.domain.units import NS_PER_S
from baseload.live.launcher import LauncherOptions, ProcessLauncher
from baseload.live.probe import Probe
from baseload.live.process import Registration, WorkerFiles, identify
from baseload.net.client import Client

pytestmark = pytest.mark.system
SCRIPT = Path(__file__).with_name("tiny_worker.py")


def command(spec: ModelSpec, files: WorkerFiles) -> list[str]:
    return [sys.executable, "-S", "-E", str(SCRIPT), spec.source, str(files.ready), str(files.lease)]


class Told:
    """What the launcher tells, to be waited for."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self._more = asyncio.Event()

    def __call__(self, event: object) -> None:
        self.events.append(event)
        self._more.set()

    async def wait(self, kind: type, replica_id: str = "r_1"):
        async with asyncio.timeout(60):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and event.replica_id == replica_id:
                        return event
                self._more.clear()
                await self._more.wait()


class Host:
    """A launcher with all it needs, as one control process has it."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.told = Told()
        self.client = Client()
        chosen = LauncherOptions(cache_dir=folder, **{"command": command, "sample_s": 0.05, **options})
        self.launcher = ProcessLauncher(folder, tell=self.told, probe=Probe(self.client), options=chosen)

    async def __aenter__(self) -> "Host":
        self.launcher.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.launcher.close(grace_s=0.2)
        await self.client.close()

    def start(self, mode: str, replica_id: str = "r_1") -> None:
        self.launcher.start(replica_id, ModelSpec(name="m", source=mode))


def replica(replica_id: str, state: ReplicaState = ReplicaState.READY) -> ReplicaStatus:
    return ReplicaStatus(replica_id, "m", state, "", 1, 0, 0, 0, WorkerSample(), 0, 0, 0, 0.0, "modelled")


async def test_a_worker_is_started_ready_sampled_and_ended(tmp_path):
    async with Host(tmp_path) as host:
        host.start("ok")
        started = await host.told.wait(WorkerStarted)
        ready = await host.told.wait(WorkerReady)
        sampled = await host.told.wait(WorkerSampled)
        assert ready.url.startswith("http://127.0.0.1:")
        assert sampled.sample == WorkerSample(1, 0, 0.25, 7, 9)
        assert os.getpgid(started.pid) == started.pid  # Ctrl-C of the control does not reach it
        files = WorkerFiles(tmp_path, "r_1")
        assert files.read_registration().process == identify(started.pid)
        host.launcher.stop("r_1", 60 * NS_PER_S)
        assert (await host.told.wait(WorkerExited)).exit_code == 0
        assert identify(started.pid) is None
        assert list(tmp_path.iterdir()) == []


async def test_readiness_is_noticed_at_once_and_not_at_the_next_look(tmp_path):
    async with Host(tmp_path, lease_s=3_600) as host:  # when it looks by itself, in case a notice was lost
        for number in range(3):
            host.start("ok", f"r_{number}")
            await host.told.wait(WorkerReady, f"r_{number}")


async def test_a_crash_at_the_start_is_told_with_its_last_words(tmp_path):
    async with Host(tmp_path) as host:
        host.start("crash")
        exited = await host.told.wait(WorkerExited)
        assert exited.exit_code == 3
        assert exited.detail.endswith("no such model file")
        assert [type(event) for event in host.told.events] == [WorkerStarted, WorkerExited]
        assert [path.name for path in tmp_path.iterdir()] == ["r_1.log"]


async def test_a_program_that_is_not_there_is_told_as_not_started(tmp_path):
    async with Host(tmp_path, command=lambda spec, files: ["/nonexistent/worker"]) as host:
        host.start("ok")
        exited = await host.told.wait(WorkerExited)
        assert exited.exit_code == 127
        assert "/nonexistent/worker" in exited.detail


async def test_a_death_later_and_a_kill_are_told(tmp_path):
    async with Host(tmp_path) as host:
        host.start("ok")
        host.start("ok", "r_2")
        ready = await host.told.wait(WorkerReady)
        pid = (await host.told.wait(WorkerStarted, "r_2")).pid
        with suppress(NetError):
            await host.client.request("GET", f"{ready.url}/die", timeout_s=60)
        exited = await host.told.wait(WorkerExited)
        assert (exited.exit_code, exited.detail) == (4, "the engine fell over")
        os.kill(pid, signal.SIGKILL)
        assert (await host.told.wait(WorkerExited, "r_2")).exit_code == -signal.SIGKILL


async def test_one_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    async with Host(tmp_path) as host:
        host.start("stubborn")
        await host.told.wait(WorkerReady)
        host.launcher.stop("r_1", NS_PER_S // 10)
        exited = await host.told.wait(WorkerExited)
        assert exited.exit_code == -signal.SIGKILL
        assert "was killed" in exited.detail


async def test_all_can_be_killed_at_once_and_each_exit_is_told(tmp_path):
    async with Host(tmp_path) as host:
        for name in ("r_1", "r_2"):
            host.start("stubborn", name)
            await host.told.wait(WorkerReady, name)
        host.launcher.stop("r_1", 600 * NS_PER_S)
        assert host.launcher.kill_all() == 2
        codes = [(await host.told.wait(WorkerExited, name)).exit_code for name in ("r_1", "r_2")]
        assert codes == [-signal.SIGKILL, -signal.SIGKILL]
        assert host.launcher.kill_all() == 0


async def test_a_slow_start_can_be_given_up(tmp_path):
    os.mkfifo(tmp_path / "gate")
    async with Host(tmp_path) as host:
        host.start("gated")
        await host.told.wait(WorkerStarted)
        host.launcher.stop("r_1", 0)
        await host.told.wait(WorkerExited)
        assert not any(isinstance(event, WorkerReady) for event in host.told.events)


async def test_stopping_what_is_gone_tells_its_exit(tmp_path):
    async with Host(tmp_path) as host:
        host.launcher.stop("r_9", NS_PER_S)
        assert (await host.told.wait(WorkerExited, "r_9")).exit_code == 0


CONTROL = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_launcher import Host
from baseload.domain.errors import NetError
from baseload.domain.events import WorkerReady, WorkerStarted

async def main():
    async with Host(Path({folder!r})) as host:
        for replica_id, mode in {workers!r}:
            host.start(mode, replica_id)
        for replica_id, mode in {workers!r}:
            await host.told.wait(WorkerStarted if mode == "gated" else WorkerReady, replica_id)
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def leave_orphans(folder: Path, workers: list[tuple[str, str]]) -> None:
    """Start workers under a control process, and kill -9 that."""
    code = CONTROL.format(here=str(SCRIPT.parent), folder=str(folder), workers=workers)
    control = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        assert await control.stdout.readline() == b"up\n"
    control.kill()
    await control.wait()


async def test_orphans_are_adopted_or_ended(tmp_path):
    os.mkfifo(tmp_path / "gate")
    orphans = [("r_known", "ok"), ("r_slow", "gated"), ("r_unknown", "ok"), ("r_dead", "ok")]
    await leave_orphans(tmp_path, orphans)
    pids = {name: WorkerFiles(tmp_path, name).read_registration().process for name, _ in orphans}
    assert all(identify(process.pid) == process for process in pids.values())
    os.kill(pids["r_dead"].pid, signal.SIGKILL)
    async with Host(tmp_path) as host:
        await host.launcher.reconcile([replica(name) for name in ("r_known", "r_slow", "r_dead", "r_never")])
        ready = await host.told.wait(WorkerReady, "r_known")
        assert await Probe(host.client).is_healthy(ready.url)
        assert (await host.told.wait(WorkerStarted, "r_slow")).pid == pids["r_slow"].pid
        assert (await host.told.wait(WorkerExited, "r_dead")).exit_code != 0
        assert "gone" in (await host.told.wait(WorkerExited, "r_never")).detail
        (tmp_path / "gate").write_text("go")
        assert (await host.told.wait(WorkerReady, "r_slow")).url
        await host.told.wait(WorkerSampled, "r_known")
        os.kill(pids["r_known"].pid, signal.SIGKILL)  # not our child, and noticed all the same
        assert (await host.told.wait(WorkerExited, "r_known")).exit_code != 0
        assert not any(getattr(event, "replica_id", "") == "r_unknown" for event in host.told.events)
    assert not any(identify(process.pid) == process for process in pids.values())


async def test_a_worker_spawned_but_not_yet_registered_is_found_and_ended(tmp_path):
    await leave_orphans(tmp_path, [("r_1", "ok")])
    files = WorkerFiles(tmp_path, "r_1")
    registration = files.read_registration()
    process = registration.process
    files.registration.write_text('{"replica_id": "r_1", "model": "m", "process": null}')
    async with Host(tmp_path) as host:
        await host.launcher.reconcile([])
        assert host.launcher.pids == {"r_1": process.pid}
    assert identify(process.pid) is None


async def test_a_reused_pid_is_not_mistaken_for_a_worker(tmp_path):
    files = WorkerFiles(tmp_path, "r_1")
    process = identify(os.getpid())
    files.register(Registration("r_1", "m", replace(process, start_ticks=process.start_ticks - 1)))
    async with Host(tmp_path) as host:
        await host.launcher.reconcile([replica("r_1")])
        await host.told.wait(WorkerExited)
        assert host.launcher.pids == {}


async def test_leases_are_renewed_and_logs_bounded(tmp_path):
    async with Host(tmp_path, lease_s=0.02) as host:
        host.start("ok")
        await host.told.wait(WorkerReady)
        files = WorkerFiles(tmp_path, "r_1")
        os.utime(files.lease, (1, 1))
        with files.log.open("ab") as log:
            log.write(b"x" * (5 << 20) + b"\nthe end\n")
        async with asyncio.timeout(60):
            while files.lease.stat().st_mtime < 10 or files.log.stat().st_size > 1 << 20:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert files.log_tail().endswith("the end")


async def test_a_hung_worker_is_killed(tmp_path):
    async with Host(tmp_path, unresponsive_s=0.0) as host:
        host.launcher._probe.sample = lambda url: asyncio.sleep(0, None)
        host.start("stubborn")
        exited = await host.told.wait(WorkerExited)
        assert "answered no probe" in exited.detail
