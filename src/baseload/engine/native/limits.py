"""What this machine can do at most, measured by the native library: read bandwidth, int8 and bfloat16 peak.

And `Alone`: one product at a time, called without XLA, to see what the kernels reach of it.
"""

import ctypes

import numpy as np

from baseload.engine.native.library import Library
from baseload.engine.native.matmul import ISAS, aligned_bytes
from baseload.engine.native.packing import SCHEMES, Packed

_PEAK_ROUNDS = 20_000  # of a dozen products: about a millisecond in each of 32 tasks a thread
_READ_BYTES = 512 << 20


class Limits:
    """Measures with all threads of `library`; the memory that is read is made once and far larger than the caches."""

    def __init__(self, library: Library, *, read_bytes: int = _READ_BYTES) -> None:
        c = library.c
        self._read_bytes = read_bytes
        c.bl_read_speed.restype = c.bl_peak_speed.restype = ctypes.c_double
        c.bl_read_speed.argtypes = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64]
        c.bl_peak_speed.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_int64]
        self._library = library
        self._isa = next(iter(library.features.isas), "portable")
        self._memory: np.ndarray | None = None

    def bandwidth_gb_s(self, *, rounds: int = 3) -> float:
        """GB/s that all threads read together, the best of `rounds` walks over the memory."""
        if self._memory is None:
            self._memory = aligned_bytes(self._read_bytes)
            self._memory += 1  # every page is there
        at = self._memory.ctypes.data
        speeds = [self._library.c.bl_read_speed(ISAS[self._isa], at, self._read_bytes) for _ in range(rounds)]
        return float(max(speeds)) / 1e9

    def int8_tops(self) -> float:
        """10¹² int8 operations/s (a multiply-add is two) on registers or tiles, by the best instruction set."""
        return self._peak("w8")

    def bf16_tflops(self) -> float:
        """10¹² bfloat16 operations/s (a multiply-add is two) on registers or tiles, by the best instruction set."""
        return self._peak("bf16")

    def _peak(self, scheme: str) -> float:
        call, scheme_number = self._library.c.bl_peak_speed, SCHEMES.index(scheme)
        return 2e-12 * max(float(call(ISAS[self._isa], scheme_number, _PEAK_ROUNDS)) for _ in range(3))


class Alone:
    """One packed matrix in memory and its product by one instruction set, on all threads, without XLA."""

    def __init__(self, library: Library, isa: str, packed: Packed) -> None:
        self._call = library.c.bl_product
        integers, longs, pointer = [ctypes.c_int32], [ctypes.c_int64], ctypes.c_void_p
        self._call.argtypes = [*integers * 2, *longs * 3, pointer, pointer, *longs, pointer, *longs]
        self._call.argtypes += [ctypes.c_float, *integers]
        self._call.restype = ctypes.c_int32
        self._isa, self._packed = ISAS[isa], packed
        self._blob = aligned_bytes(packed.data.nbytes)
        self._blob[:] = packed.data

    def product(self, x: np.ndarray, *, columns: int = 0, eps: float = -1.0, swiglu: bool = False) -> np.ndarray:
        """float32[rows, columns] of x float32[rows, k]; eps < 0: no norm; SwiGLU of matrices packed for it."""
        w = self._packed
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert x.shape[1] == w.k
        out = np.empty((x.shape[0], columns or w.n), np.float32)
        where = (self._blob.ctypes.data, x.ctypes.data, x.shape[0], out.ctypes.data, out.shape[1])
        failed = self._call(self._isa, SCHEMES.index(w.scheme), w.n, w.k, w.group, *where, eps, swiglu)
        assert not failed, "this processor lacks the instruction set"
        return out
