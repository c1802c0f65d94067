"""A worker without a model: everything is imported, the device is open, and it waits to become any one model, once.

    python -m baseload.worker --spare FOLDER [--threads N]

It writes `warm` and a line end to its standard output, then reads one line of JSON from its standard input:
`{"arguments": [...], "log": "..."}`, the command line of the worker that it is to become and the file that takes what
it prints. From there on it is that worker, and knows of nothing else. Where the input ends first, whoever kept it is
gone, and it ends too. FOLDER is only shown, so that an operator sees whose it is.

It is not forked: a fork after the backend was opened deadlocks, and one before it starts a model 1.6 times as slowly
(decision 0016).
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Sequence

from baseload.engine.device import configure

FLAG = "--spare"
WARM = b"warm\n"
_HEAVY = "baseload.worker.process"
_PRIORITY = 10  # while importing: what runs goes first


def wait(arguments: Sequence[str]) -> list[str] | None:
    """Warm up and wait; the command line to go on with, or None when there will be none."""
    threads = int(arguments[arguments.index("--threads") + 1]) if "--threads" in arguments else 0
    # Priority is per thread on Linux, and none but root may take a low one back: a thread that ends bears it.
    importer = threading.Thread(target=_import_everything, name="import")
    importer.start()
    importer.join()
    if _has_only_cpu():  # a GPU's client would take the memory that running models need
        configure(threads=threads)
        sys.modules["jax"].devices()
    os.write(sys.stdout.fileno(), WARM)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return None
    job = json.loads(line)
    _become(str(job["log"]))
    return [str(word) for word in job["arguments"]]


def _import_everything() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
    importlib.import_module(_HEAVY)  # not at the top: this module is there to choose when and how


def _has_only_cpu() -> bool:
    """Whether JAX has nothing but the CPU to open here; told without opening anything."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and all(importlib.util.find_spec(name) is None for name in ("jax_plugins", "libtpu"))


def _become(log: str) -> None:
    """Cut the ties to whoever kept this process: input from nowhere, output to the replica's log."""
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.dup2(nothing, sys.stdin.fileno())
    os.dup2(out, sys.stdout.fileno())
    os.dup2(out, sys.stderr.fileno())
    os.close(nothing)
    os.close(out)
