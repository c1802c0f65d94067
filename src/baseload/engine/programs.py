"""Compiled programs, kept on disk: a later process loads them instead of tracing and compiling again.

An entry is a header line of JSON (the full key and the payload's digest) and the serialized executable. An entry
whose key differs in anything (shapes, configuration, versions, processor, our own source), whose digest is wrong,
or that does not load, is compiled anew and replaced. Executables are code: the directory is private to its user,
and entries that belong to somebody else are not read.
"""

import contextlib
import hashlib
import json
import os
import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
from jax.experimental import serialize_executable

from baseload.files import write_whole

Program = Callable[..., Any]
MAX_ENTRIES = 1024  # about 25 per model and mode, of 30 to 300 KB
_MAGIC = "baseload-program-1"
# The modules whose code is traced into programs: a change in one of them makes every entry stale.
_SOURCES = (
    *("attention", "config", "decoder", "kv_cache", "layers", "llama", "moe", "pallas_attention", "qwen", "rope"),
    *("runner", "steps"),
    *("native/attention", "native/matmul", "native/packing", "native/rows", "native/steps"),
)


class ProgramCache:
    """Programs by name: in memory, else on disk, else compiled. Safe to use from several threads."""

    def __init__(self, directory: Path | None, key: Mapping[str, Any], *, max_entries: int = MAX_ENTRIES) -> None:
        self._directory = directory
        self._max_entries = max_entries
        self._key = dict(key)
        self._programs: dict[str, Program] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self.loaded = 0  # from disk
        self.compiled = 0

    @property
    def identity(self) -> str:
        """Of all that every program here depends on."""
        return self._identity("")

    def ready(self, name: str) -> bool:
        """Whether `get` will answer at once."""
        return name in self._programs

    def get(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> Program:
        """The program of this name; `lower` traces it where it must be compiled."""
        found = self._programs.get(name)
        if found is not None:
            return found
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._programs:
                self._programs[name] = self._load(name) or self._compile(name, lower)
            return self._programs[name]

    def _path(self, name: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{self._identity(name)}.jaxprogram"

    def _identity(self, name: str) -> str:
        text = json.dumps({**self._key, "program": name}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _load(self, name: str) -> Program | None:
        if self._directory is None:
            return None
        try:
            path = self._path(name)
            if path.stat().st_uid != os.getuid():
                return None
            head, _, payload = path.read_bytes().partition(b"\n")
            header = json.loads(head)
            if header != self._header(name, payload):
                return None
            program: Program = serialize_executable.deserialize_and_load(*pickle.loads(payload))  # noqa: S301 - own file
            path.touch()  # recently used: the last to be dropped
        except FileNotFoundError:
            return None
        except Exception:  # whatever is wrong with a cache entry, compiling anew is the remedy
            return None
        self.loaded += 1
        return program

    def _compile(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> Program:
        program = lower().compile()
        self.compiled += 1
        if self._directory is not None:
            payload = pickle.dumps(serialize_executable.serialize(program))
            head = json.dumps(self._header(name, payload)).encode()
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._path(name), [head, b"\n", payload])
            self._drop_oldest(self._directory)
        return program

    def _drop_oldest(self, directory: Path) -> None:
        """Keeps the directory within its bound; another process may be doing the same."""
        aged = []
        for path in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                aged.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(aged)[: -self._max_entries]:
            path.unlink(missing_ok=True)

    def _header(self, name: str, payload: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(payload).hexdigest()
        # Through JSON, so that tuples compare equal to the lists they are read back as.
        text = json.dumps({"magic": _MAGIC, "digest": digest, "key": {**self._key, "program": name}})
        header: dict[str, Any] = json.loads(text)
        return header


def environment_key() -> dict[str, Any]:
    """What a compiled program depends on besides its own shapes: versions, device, processor and our source."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "platform": f"{device.platform} {device.device_kind}",
        "devices": jax.device_count(),
        "processor": hashlib.sha256(_processor().encode()).hexdigest()[:16],
        "source": _source_digest(),
    }


def _processor() -> str:
    """The processor's model and features, and how many of its cores we may use."""
    wanted = ("model name", "flags", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    unique = sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join([*unique, str(len(os.sched_getaffinity(0))), os.uname().machine])


def _source_digest() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]
