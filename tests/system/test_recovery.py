"""kill -9 of the control process at any instant: nothing acknowledged is lost, nothing is there twice."""

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from baseload.live.run import open_offline
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
    while said.count(b"\n") < after_lines:
        chunk = child.stdout.read1(64)
        assert chunk, "the child ended by itself"
        said += chunk
    said += child.stdout.read(extra_bytes)
    child.kill()
    said += child.stdout.read()
    child.stdout.close()
    assert child.wait() == -9
    return [line for line in said.decode().split("\n")[:-1] if line]


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


async def test_recovery_takes_less_than_a_second(tmp_path):
    said = run_and_kill(tmp_path / "data", 0, 3_000, 0, 1_000_000)
    assert len(said) >= 3_000
    started = time.perf_counter()
    async with open_offline(tmp_path / "data") as control:
        took_s = time.perf_counter() - started
        assert control.seq > 8_000
    assert took_s < 1.0
