"""The built kernels: found, loaded and registered with XLA once per process; None where they were not built."""

import ctypes
import functools
import hashlib
from pathlib import Path

import jax

from baseload.engine.native import features as cpu
from baseload.engine.native.features import CpuFeatures

_FILE = Path(__file__).with_name("_kernels.so")
_SOURCES = Path(__file__).parents[4] / "native"  # in a checkout; nothing where the package was installed whole
# Handlers called from JAX programs: symbol in the library = target name in the program.
HANDLERS = (
    *("bl_add_one", "bl_experts", "bl_matmul", "bl_unpack_rows"),
    *("bl_attention", "bl_combine", "bl_hadamard", "bl_new_cache", "bl_route", "bl_rows"),
)


class Library:
    """The loaded shared object. Handlers are registered for JAX's CPU platform when it is made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.c = ctypes.CDLL(str(path))
        self.c.bl_features.restype = ctypes.c_uint32
        self.c.bl_threads.restype = ctypes.c_int32
        self.c.bl_set_threads.argtypes = [ctypes.c_int32]
        for name in HANDLERS:
            capsule = jax.ffi.pycapsule(getattr(self.c, name))  # type: ignore[no-untyped-call]
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")

    @property
    def features(self) -> CpuFeatures:
        """What this processor offers, as the kernels see it."""
        return CpuFeatures.of_bits(self.c.bl_features())

    @property
    def threads(self) -> int:
        """How many threads one call works with, the caller included."""
        return int(self.c.bl_threads())

    def set_threads(self, count: int) -> None:
        """Sets that number; 0: one per allowed CPU. Before the first call, or between calls."""
        self.c.bl_set_threads(count)


@functools.cache
def load() -> Library | None:
    """The library, or None: not built (no compiler when the package was installed), or not loadable here."""
    if not _FILE.exists():
        return None
    try:
        return Library(_FILE)
    except (OSError, AttributeError):  # built for another machine, or by another version of this package
        return None


@functools.cache
def digest() -> str:
    """Of the library's bytes, for what was made for one build of it; "" without one."""
    return hashlib.sha256(_FILE.read_bytes()).hexdigest()[:16] if load() is not None else ""


def is_stale() -> bool:
    """Whether a source of the kernels was changed after the library was built: in a checkout, until `make native`."""
    if not _FILE.exists():
        return False
    sources = (path for kind in ("*.cc", "*.h", "*.inl") for path in _SOURCES.glob(f"*/{kind}"))
    newest = max((path.stat().st_mtime_ns for path in sources if path.parent.name != "tests"), default=0)
    return newest > _FILE.stat().st_mtime_ns


def features() -> CpuFeatures:
    """What the kernels may use here; nothing where there are none."""
    library = load()
    return CpuFeatures() if library is None else library.features


def isa_for(setting: str) -> str:
    """The instruction set for `EngineSpec.kernels`: "amx", "avx512", "avx512vnni", "avxvnni", "avx2", or "xla".

    "auto" takes the best there is. Raises SettingsError for one that cannot be had here.
    """
    return cpu.choose(setting, features())
