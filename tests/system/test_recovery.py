"""kill -9 of the control process at any instant: nothing acknowledged is lost, nothing is there twice."""

import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from baseload.live.launcher import LauncherOptions
from baseload.live.process import identify
from baseload.live.run import ControlOptions, open_offline, start_control
from baseload.live.store import FILE

pytestmark = pytest.mark.system
CHILD = Path(__file__).with_name("recovery_child.py")
KILLS = 10


def run_and_kill(
    folder: Path, first: int, after_lines: int, extra_bytes: int, snapshot_every: int = 500
) -> list[str]:
    """Let a child acknowledge so many things, kill it in the middle of more; what it had said until then."""
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), str(first), str(snapshot_every)], stdout=subprocess.PIPE
    )
    said = b""
    while said.count(b"\n") <= after_lines:  # and one for `begin`
        chunk = child.stdout.read1(64)
        assert chunk, "the child ended by itself"
        said += chunk
    said += child.stdout.read(extra_bytes)
    child.kill()
    said += child.stdout.read()
    child.stdout.close()
    assert child.wait() == -9
    return [line for line in said.decode().split("\n")[:-1] if line != "begin"]


def start_and_kill(arguments: list[str], first_line: bytes, longest_s: float) -> None:
    """Kill a child so long after its first line, or at its second."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE)
    assert child.stdout.readline() == first_line
    select.select([child.stdout], [], [], longest_s)
    child.kill()
    child.stdout.close()
    assert child.wait() == -9


def entries(folder: Path) -> list[str]:
    """The request entries in the ledger."""
    database = sqlite3.connect(folder / FILE)
    rows = database.execute("SELECT subject FROM entry WHERE kind = 'request'").fetchall()
    database.close()
    return [row[0] for row in rows]


async def test_kills_at_random_instants_lose_nothing_acknowledged_and_double_nothing(tmp_path):
    folder = tmp_path / "data"
    chance = random.Random(20261120)
    said: list[str] = []
    for number in range(KILLS):
        first = 1_000_000 * number + chance.randrange(2)
        after = chance.choice([1, 2, 30, 200, 900, 2_000])
        said += run_and_kill(folder, first, after, chance.randrange(200))
        async with open_offline(folder) as control:
            have = {key.key_id for key in tuple(control.keys())}
            used = sum(row.requests for row in await control.usage())
        found = entries(folder)
        assert len(found) == len(set(found)), "an entry is there twice"
        assert used == len(found), "the usage and the entries differ"
        missing_keys = [line for line in said if line.startswith("key ") and f"key_{line[4:]}" not in have]
        missing = {f"req_{line[4:]}" for line in said if line.startswith("req ")} - set(found)
        assert not missing_keys
        assert not missing
    assert len(said) > 1_000


async def test_a_kill_while_it_recovers_does_no_harm(tmp_path):
    folder = tmp_path / "data"
    chance = random.Random(7)
    run_and_kill(folder, 0, 1_500, 0, 1_000_000)
    for kill in range(6):
        first = str(5_000_000 + kill * 100_000)  # a quick child gets as far as requests of its own
        start_and_kill([str(CHILD), str(folder), first, "500"], b"begin\n", chance.random() * 0.06)
        copy = shutil.copytree(folder, tmp_path / "copy")
        async with open_offline(copy) as control:
            assert control.model("m") is not None
            used = sum(row.requests for row in await control.usage())
        found = entries(copy)
        assert used == len(found) == len(set(found))
        assert len(found) > 1_400
        shutil.rmtree(copy)


CONTROL_WITH_WORKER = """
import asyncio, sys
from pathlib import Path
from baseload.domain.events import ModelPut, KeyCreated
from baseload.domain.model import ModelSpec, Scaling
from baseload.domain.tenant import Key
from baseload.live.launcher import LauncherOptions
from baseload.live.process import identify
from baseload.live.run import ControlOptions, start_control

def command(spec, files):
    return [sys.executable, "-S", "-E", {script!r}, spec.source, str(files.ready), str(files.lease)]

async def main():
    folder = Path({folder!r})
    options = ControlOptions(launcher=LauncherOptions(cache_dir=folder, command=command), metered=False)
    control = await start_control(folder, options=options)
    await control.acknowledge(ModelPut(ModelSpec(name="m", source={source!r}, scaling=Scaling(min_replicas=1))))
    while not control.status().models[0].ready:
        await asyncio.sleep(0.001)
    if {moved_to!r}:
        await control.acknowledge(ModelPut(ModelSpec(name="m", source={moved_to!r})))
    control.settle()
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _control_with_worker(folder: Path, *, source: str, moved_to: str = "") -> str:
    script = str(CHILD.with_name("tiny_worker.py"))
    return CONTROL_WITH_WORKER.format(script=script, folder=str(folder), source=source, moved_to=moved_to)


async def test_a_local_worker_of_a_model_that_moved_away_is_ended_after_the_kill(tmp_path):
    folder = tmp_path / "data"
    code = _control_with_worker(folder, source="stubborn", moved_to="http://127.0.0.1:9")
    start_and_kill(["-c", code], b"up\n", 0.0)
    options = ControlOptions(launcher=LauncherOptions(cache_dir=folder), metered=False)
    control = await start_control(folder, options=options)
    stubborn = [replica for replica in control.status().replicas if replica.pid]
    told = [row.subject for row in await control.events(limit=1000) if row.kind in ("worker_ready", "worker_exited")]
    assert stubborn
    assert told.count(stubborn[0].replica_id) == 2, "once when it began, once when control came back"
    os.kill(stubborn[0].pid, signal.SIGKILL)
    assert await control.stop(60.0)
    assert all(identify(replica.pid) is None for replica in stubborn)


async def test_a_worker_is_adopted_and_its_time_tiles_over_the_kill(tmp_path):
    folder = tmp_path / "data"
    code = _control_with_worker(folder, source="ok")
    start_and_kill(["-c", code], b"up\n", 0.0)
    options = ControlOptions(launcher=LauncherOptions(cache_dir=folder), metered=False)
    control = await start_control(folder, options=options)
    (replica,) = control.status().replicas
    assert replica.state == "ready"
    assert identify(replica.pid) is not None
    adopted = [row.subject for row in await control.events(kind="decision") if row.body["what"] == "adopt"]
    assert adopted == [replica.replica_id]
    assert await control.stop(60.0)
    assert identify(replica.pid) is None
    async with open_offline(folder) as later:
        spans = [row.body for row in await later.events(kind="replica", limit=1000)]
        used = await later.usage()
    assert [one["from_ns"] for one in spans[1:]] == [one["to_ns"] for one in spans[:-1]]
    assert spans[-1]["final"]
    life_ns = spans[-1]["to_ns"] - spans[0]["from_ns"]
    assert sum(row.useful_ns + row.idle_ns + row.cold_ns for row in used) == life_ns


async def test_recovery_takes_less_than_a_second_of_processor_time(tmp_path):
    said = run_and_kill(tmp_path / "data", 0, 3_000, 0, 1_000_000)
    assert len(said) >= 3_000
    started = time.process_time()  # what others do on this machine does not count
    async with open_offline(tmp_path / "data") as control:
        took_s = time.process_time() - started
        assert control.seq > 8_000
    assert took_s < 1.0
