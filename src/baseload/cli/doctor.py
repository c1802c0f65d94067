"""`baseload doctor`: what this machine has, what is lost without it, and what to do."""

import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import typer
from msgspec import Struct

from baseload.cli.flags import AsJson, DataDir, SettingsFile
from baseload.cli.folders import why_unwritable
from baseload.cli.reach import KEY_FILE, Place, settings_of
from baseload.cli.screen import FAILURE, print_json, print_table, say
from baseload.cli.settings import cache_dir
from baseload.live.datadir import find_running
from baseload.live.meters import describe
from baseload.wire.settings import Settings

GIB = 1 << 30
FILES_WANTED = 4096
FIRST_TESTED, LAST_TESTED = (3, 11), (3, 13)


class Finding(Struct, frozen=True):
    """One check. `level` is "ok", "note" (works, but something is lost) or "bad" (will not work)."""

    name: str
    level: str
    found: str
    advice: str = ""


def doctor(data_dir: DataDir = "", settings: SettingsFile = "", as_json: AsJson = False) -> None:
    """Check this machine and the data folder; ends with 1 if something will not work."""
    chosen = settings_of(Place(data_dir, settings))
    findings = list(examine(chosen))
    if as_json:
        print_json(findings)
    else:
        marks = {"ok": "ok", "note": "note", "bad": "BAD"}
        rows = [(marks[one.level], one.name, one.found, one.advice) for one in findings]
        print_table(("", "what", "found", "what to do"), rows)
        bad = sum(one.level == "bad" for one in findings)
        say(f"{bad} thing{'s' * (bad != 1)} will not work." if bad else "Ready: baseload up")
    if any(one.level == "bad" for one in findings):
        raise typer.Exit(FAILURE)


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, one after the other."""
    yield _python()
    yield from _processor(_cpu_flags())
    yield _memory()
    yield _jax()
    yield _kernels()
    yield from _libraries()
    yield _meters()
    data_dir = Path(settings.data_dir).expanduser().absolute()
    yield _disk(data_dir)
    yield _data(data_dir)
    yield _cache(cache_dir(settings))
    yield _port(settings, data_dir)
    yield _files()
    yield _spares(settings)


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < FIRST_TESTED:
        return Finding("Python", "bad", found, "Install Python 3.11 or later.")
    if sys.version_info[:2] > LAST_TESTED:
        return Finding("Python", "note", found, "Tested on 3.11 to 3.13.")
    return Finding("Python", "ok", found)


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def _processor(flags: frozenset[str]) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = "" if cores > 1 else "One core: control and worker share it. Two or more are better."
    yield Finding("cores", "ok" if cores > 1 else "note", f"{cores} ({platform.machine()})", advice)
    if not flags:
        yield Finding("vector units", "note", "unknown: no /proc/cpuinfo", "Speed on this machine is not known.")
        return
    wanted = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512_vnni": "AVX512-VNNI", "avx2": "AVX2"}
    has = [name for flag, name in wanted.items() if flag in flags]
    if "amx_bf16" in flags or "avx512_bf16" in flags:
        yield Finding("vector units", "ok", ", ".join(has))
    elif "avx2" in flags:
        yield Finding(
            "vector units",
            "note",
            ", ".join(has),
            "bfloat16 is emulated: slower prefill. AVX512-BF16 or AMX is better.",
        )
    else:
        yield Finding("vector units", "note", ", ".join(has) or "none of them", "Models will be slow here.")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    if memory.available < GIB:
        return Finding("memory", "bad", found, "Free at least 1 GiB: a worker needs about that for a small model.")
    return Finding("memory", "ok", found)


def _jax() -> Finding:
    try:
        # JAX takes a second to import and finds its devices only by starting them.
        import jax  # noqa: PLC0415

        devices = jax.devices()
    except Exception as error:  # whatever is wrong with it is the finding
        return Finding("JAX", "bad", f"{type(error).__name__}: {error}", "Install it again: make clean && make up.")
    names = ", ".join(sorted({device.device_kind for device in devices}))
    return Finding("JAX", "ok", f"{jax.__version__}: {len(devices)} × {names} ({jax.default_backend()})")


def _kernels() -> Finding:
    if platform.machine() not in ("x86_64", "AMD64"):
        return Finding("kernels", "note", "none for this processor", "Models run on XLA alone: slower, more memory.")
    # Loading them registers them with JAX, which takes a second to import.
    from baseload.engine.native.library import features, is_stale, load  # noqa: PLC0415

    if load() is None:
        advice = "Models run on XLA alone, without 8- and 4-bit weights at full speed. Install g++, then: make native"
        return Finding("kernels", "note", "not built", advice)
    has = features()
    if has.has_amx and not has.amx:
        advice = "AMX gave wrong results in its check and is not used: please report this processor."
        return Finding("kernels", "note", ", ".join(has.isas), advice)
    if has.amx_refused:
        advice = "The system refuses AMX to this process (Linux before 5.16, or a sandbox): AVX-512 is used, slower."
        return Finding("kernels", "note", ", ".join(has.isas), advice)
    if not has.isas:
        return Finding("kernels", "note", "built; the processor lacks AVX2", "Models run on XLA alone.")
    if is_stale():
        return Finding("kernels", "note", "older than their sources in native/", "Build them again: make native")
    return Finding("kernels", "ok", f"{has.isas[0]} (of {', '.join(has.isas)})")


def _libraries() -> Iterator[Finding]:
    for name in ("uvloop", "httptools"):
        if importlib.util.find_spec(name) is not None:
            yield Finding(name, "ok", "installed")
        else:
            advice = "Gateway and workers cannot start. Install it again: make clean && make up."
            yield Finding(name, "bad", "missing", advice)


def _meters() -> Finding:
    found = describe()
    if found.startswith("measured"):
        return Finding("energy", "ok", found)
    return Finding("energy", "note", found, "Set price.busy_w and price.idle_w to what this machine draws.")


def _disk(data_dir: Path) -> Finding:
    try:
        place = next(folder for folder in (data_dir, *data_dir.parents) if folder.is_dir())
    except OSError as error:
        return Finding(
            "disk", "note", f"{data_dir} cannot be looked at: {error.strerror}", "See the data folder below."
        )
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free at {place}"
    if free < GIB // 4:
        return Finding("disk", "bad", found, "Free some space: the journal stops taking requests when it is full.")
    return Finding("disk", "ok" if free > GIB else "note", found, "" if free > GIB else "Watch it.")


def _data(data_dir: Path) -> Finding:
    wrong = why_unwritable(data_dir)
    if wrong is not None:
        return Finding("data folder", "bad", wrong[0], f"{wrong[1]}, or choose another with --data-dir.")
    if not data_dir.exists():
        return Finding("data folder", "ok", f"{data_dir} (made at the first start)")
    key = data_dir / KEY_FILE
    if key.exists() and key.stat().st_mode & 0o077:
        return Finding("data folder", "note", f"{key} can be read by others", f"chmod 600 {key}")
    running = find_running(data_dir)
    return Finding("data folder", "ok", f"{data_dir}" + (f", in use by process {running.pid}" if running else ""))


def _cache(folder: Path) -> Finding:
    wrong = why_unwritable(folder)
    if wrong is not None:
        return Finding("program cache", "bad", wrong[0], f"{wrong[1]}, or name another as cache_dir.")
    programs = sum(1 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    if programs:
        return Finding("program cache", "ok", f"{programs} files in {folder}")
    return Finding("program cache", "note", f"empty: {folder}", "The first wake compiles and takes longer.")


def _port(settings: Settings, data_dir: Path) -> Finding:
    running = find_running(data_dir)
    if running is not None:
        return Finding("port", "ok", f"Baseload runs at {running.url}")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            found = f"{settings.host}:{settings.port}: {error.strerror or error}"
            return Finding("port", "bad", found, "Choose another with --port, or stop what uses it.")
    return Finding("port", "ok", f"{settings.host}:{settings.port} is free")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} open files"
    if soft != resource.RLIM_INFINITY and soft < FILES_WANTED:
        more = hard == resource.RLIM_INFINITY or hard >= FILES_WANTED
        advice = f"ulimit -n {FILES_WANTED}" if more else "Ask your administrator for more."
        return Finding("open files", "note", found, f"Few connections at once. {advice}")
    return Finding("open files", "ok", found)


def _spares(settings: Settings) -> Finding:
    if settings.spares:
        return Finding("spares", "ok", f"{settings.spares} kept ready to become a model, about 170 MiB each")
    return Finding("spares", "note", "none are kept", "Sleeping models wake more slowly. Set spares = 1.")
