"""The machine and its limits: what it can read and multiply, measured beside the engines."""

import json
import os
import platform
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
from environments import processor_flags

SOURCE = Path(__file__).with_name("probe.c")


def describe() -> dict[str, object]:
    """Processor, cores, features that matter, memory, load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    has = processor_flags()
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "features": [flag for flag in wanted if flag in has],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def limits(cache: Path, threads: int) -> dict[str, object]:
    """Bytes per second read, and operations per second in int8, bfloat16 and float32, on all cores together."""
    program = cache / "probe"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        command = [compiler or "cc", "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(program)]
        if compiler is None or subprocess.run(command, capture_output=True, check=False).returncode:
            return _by_numpy(threads)
    done = subprocess.run([program, str(threads)], capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _by_numpy(threads: int) -> dict[str, object]:
    """Without a compiler: reading alone, through BLAS; the rates of arithmetic stay unknown."""
    parts = [np.ones(64 << 20, np.float32) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - began))
    return {"read_bytes_per_s": best, "int8_by": "not measured: no C compiler", "bf16_by": "not measured"}
