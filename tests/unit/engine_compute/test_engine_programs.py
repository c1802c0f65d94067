"""Compiled programs on disk: loaded when they fit exactly, compiled anew in every other case."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from baseload.domain.model import EngineSpec
from baseload.engine.buckets import Buckets, pick, split
from baseload.engine.programs import ProgramCache, environment_key
from baseload.engine.runner import open_runner
from baseload.engine.spans import Span


def double():
    return jax.jit(lambda x: x * 2).lower(jax.ShapeDtypeStruct((3,), np.float32))


def use(directory, key=None, name="double"):
    cache = ProgramCache(directory, key or {"version": 1})
    program = cache.get(name, double)
    assert np.array_equal(program(np.ones(3, np.float32)), np.full(3, 2.0))
    assert program is cache.get(name, double)
    return cache.loaded, cache.compiled


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    assert use(tmp_path) == (0, 1)
    assert use(tmp_path) == (1, 0)


def test_without_a_directory_nothing_is_kept(tmp_path):
    assert use(None) == (0, 1)
    assert use(None) == (0, 1)


def test_another_key_or_name_is_another_program(tmp_path):
    use(tmp_path)
    assert use(tmp_path, {"version": 2}) == (0, 1)
    assert use(tmp_path, name="other") == (0, 1)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign key"])
def test_a_damaged_or_foreign_entry_is_rebuilt(tmp_path, damage):
    use(tmp_path)
    (entry,) = tmp_path.iterdir()
    data = entry.read_bytes()
    broken = {
        "truncated": data[: len(data) // 2],
        "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "empty": b"",
        "foreign key": data.replace(b'"version": 1', b'"version": 9', 1),
    }[damage]
    assert broken != data
    entry.write_bytes(broken)
    assert use(tmp_path) == (0, 1)
    assert use(tmp_path) == (1, 0)


def test_the_directory_keeps_within_its_bound(tmp_path):
    cache = ProgramCache(tmp_path, {"version": 1}, max_entries=3)
    for index in range(5):
        cache.get(f"program {index}", double)
    assert len(list(tmp_path.iterdir())) == 3
    assert use(tmp_path, name="program 4") == (1, 0)
    assert use(tmp_path, name="program 0") == (0, 1)


def test_threads_are_bounded_in_a_fresh_process():
    code = (
        "import os, time\n"
        "from baseload.engine.device import configure\n"
        "configure(threads=3)\n"
        "import jax\n"
        "jax.devices()\n"
        "def name(task):\n"
        "    try:\n"
        "        return open(f'/proc/self/task/{task}/comm').read().strip()\n"
        "    except OSError:  # it ended meanwhile\n"
        "        return ''\n"
        "def count():\n"
        "    return [name(task) for task in os.listdir('/proc/self/task')].count('tf_XLAEigen')\n"
        "until = time.monotonic() + 60\n"
        "while count() < 3 and time.monotonic() < until:  # a thread names itself once it runs\n"
        "    pass\n"
        "print(count())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "3"


def test_the_environment_names_what_programs_depend_on():
    assert set(environment_key()) == {"jax", "jaxlib", "platform", "devices", "processor", "source"}


def test_a_runner_answers_with_its_first_buckets_and_loads_them_the_next_time(goldens, tmp_path):
    spec = EngineSpec(dtype="float32", kv_cache_bytes=1 << 20, max_seqs=64, max_step_tokens=64, max_context=256)
    tokens, blocks = np.arange(70, dtype=np.int32), np.arange(8, dtype=np.int32)
    rows = []
    for expected in ((0, 2), (2, 0)):
        runner = open_runner(goldens / "llama2-tied", spec=spec, cache_dir=tmp_path)
        rows.append(np.asarray(runner.run([Span(tokens, 0, blocks, True)])))
        assert (runner.programs.loaded, runner.programs.compiled) == expected
    assert np.array_equal(rows[0], rows[1])


def test_a_background_warming_can_be_ended(goldens, tmp_path):
    spec = EngineSpec(dtype="float32", kv_cache_bytes=1 << 20, max_seqs=64, max_step_tokens=512, max_context=256)
    runner = open_runner(goldens / "llama2-tied", spec=spec, cache_dir=tmp_path)
    runner.warm()
    runner.close()
    assert runner.programs.compiled < 2 * (len(runner.buckets.prefill) + len(runner.buckets.decode))


def test_buckets_are_powers_of_two_that_reach_the_maximum():
    assert Buckets.choose(max_seqs=5, max_step_tokens=100, smallest=2) == Buckets((2, 4, 8), (32, 64, 128))
    assert Buckets.choose(max_seqs=1, max_step_tokens=1, smallest=16) == Buckets((16,), (32,))
    assert pick((2, 4, 8), 3) == 4
    assert pick((2, 4, 8), 9) == 8
    assert split((2, 8), 19) == [(0, 8, 8), (8, 8, 8), (16, 3, 8)]
