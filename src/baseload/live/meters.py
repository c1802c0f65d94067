"""Energy meters: RAPL of the processors or NVML of the accelerators, shared out to workers by what they used.

Where neither can be read nothing is measured, and the ledger's figures come from the model's stated power, labelled
`modelled`. A worker's share of the processors' energy is its processes' part of all busy processor time of the
machine; its share of an accelerator's energy is divided evenly among the workers with processes on it.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import psutil

from baseload.domain.events import EnergyMeasured, Event

_log = logging.getLogger("baseload.live")
_POWERCAP = Path("/sys/class/powercap")
_INTERVAL_S = 2.0


class Meter(Protocol):
    """Reads energy since the last reading, by replica id, in microjoules."""

    basis: str

    def read(self, pids: Mapping[str, int]) -> dict[str, int]:
        """The energy each replica used since the last call; `pids` are their main processes."""

    def close(self) -> None:
        """Give the meter back."""


class RaplMeter:
    """The packages' energy counters of Linux powercap."""

    basis = "rapl"

    def __init__(self, domains: list[Path]) -> None:
        self._domains = domains
        self._wraps_uj = [int((domain / "max_energy_range_uj").read_text()) for domain in domains]
        self._last_uj = self._counters()
        self._busy_s = _busy_s()
        self._used_s: dict[str, float] = {}

    def read(self, pids: Mapping[str, int]) -> dict[str, int]:
        """The energy each replica used since the last call, by its part of all busy processor time."""
        counters = self._counters()
        spent_uj = sum(
            now - before if now >= before else now + wrap - before
            for now, before, wrap in zip(counters, self._last_uj, self._wraps_uj, strict=True)
        )
        busy_s = _busy_s()
        machine_s = busy_s - self._busy_s
        used_s = {replica_id: _cpu_s(pid) for replica_id, pid in pids.items()}
        shares = {
            replica_id: max(0.0, used - self._used_s.get(replica_id, used)) for replica_id, used in used_s.items()
        }
        whole_s = max(machine_s, sum(shares.values()), 1e-9)
        self._last_uj, self._busy_s, self._used_s = counters, busy_s, used_s
        return {replica_id: int(spent_uj * share / whole_s) for replica_id, share in shares.items()}

    def close(self) -> None:
        """Nothing is held."""

    def _counters(self) -> list[int]:
        return [int((domain / "energy_uj").read_text()) for domain in self._domains]


class NvmlMeter:
    """The total-energy counters of NVIDIA accelerators."""

    basis = "nvml"

    def __init__(self, nvml: "Nvml") -> None:
        self._nvml = nvml
        self._devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._last_mj = self._counters()

    def read(self, pids: Mapping[str, int]) -> dict[str, int]:
        """The energy each replica used since the last call: each device's, evenly among the workers on it."""
        counters = self._counters()
        owners = {pid: replica_id for replica_id, main in pids.items() for pid in _family(main)}
        found = dict.fromkeys(pids, 0)
        for device, now, before in zip(self._devices, counters, self._last_mj, strict=True):
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
            on_it = sorted({owners[one.pid] for one in running if one.pid in owners})
            for replica_id in on_it:
                found[replica_id] += (now - before) * 1_000 // len(on_it)
        self._last_mj = counters
        return found

    def close(self) -> None:
        """Give the driver library back."""
        self._nvml.nvmlShutdown()

    def _counters(self) -> list[int]:
        return [int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device)) for device in self._devices]


class Nvml(Protocol):
    """The part of pynvml used here."""

    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...  # noqa: N802
    def nvmlDeviceGetTotalEnergyConsumption(self, device: object) -> int: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses(self, device: object) -> list["NvmlProcess"]: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802


class NvmlProcess(Protocol):
    """A process on a device."""

    pid: int


def open_meter(powercap: Path = _POWERCAP) -> Meter | None:
    """The best meter that can be read here: accelerators first, then processors; None where there is none."""
    return _open_nvml() or _open_rapl(powercap)


def describe(powercap: Path = _POWERCAP) -> str:
    """What energy figures rest on here, in words, for `baseload doctor`."""
    meter = open_meter(powercap)
    if meter is None:
        if powercap.is_dir() and any(powercap.glob("*:*")):
            return "modelled from stated power: the processors' meters (RAPL) exist but may be read by root only"
        return "modelled from stated power: this machine shows no meter (RAPL or NVML)"
    meter.close()
    return {
        "rapl": "measured: RAPL, the processors' own counters",
        "nvml": "measured: NVML, the accelerators' counters",
    }[meter.basis]


class EnergyMeter:
    """Reads a meter now and then and tells each replica's share."""

    def __init__(
        self,
        meter: Meter | None,
        *,
        pids: Callable[[], Mapping[str, int]],
        tell: Callable[[Event], None],
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._meter = meter
        self._pids = pids
        self._tell = tell
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read, where there is a meter."""
        if self._meter is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._meter))

    async def close(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._meter is not None:
            self._meter.close()

    async def _run(self, meter: Meter) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            pids = dict(self._pids())
            try:
                found = meter.read(pids)
            except Exception:  # the driver library's own errors, or a counter gone: go on with modelled energy
                _log.exception("The energy meter (%s) cannot be read any more; energy is modelled.", meter.basis)
                return
            for replica_id, energy_uj in found.items():
                if energy_uj > 0:
                    self._tell(EnergyMeasured(replica_id, energy_uj, meter.basis))


def _open_rapl(powercap: Path) -> RaplMeter | None:
    domains = [
        domain
        for domain in sorted(powercap.glob("*rapl*:*"))
        if domain.name.count(":") == 1 and os.access(domain / "energy_uj", os.R_OK)
    ]
    try:
        return RaplMeter(domains) if domains else None
    except (OSError, ValueError):
        return None


def _open_nvml() -> NvmlMeter | None:
    try:
        import pynvml  # noqa: PLC0415 - optional: only where there are NVIDIA accelerators

        pynvml.nvmlInit()
    except Exception:  # absent library, absent driver, no permission: there is no such meter here
        return None
    try:
        return NvmlMeter(pynvml)
    except Exception:  # a device without an energy counter
        pynvml.nvmlShutdown()
        return None


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))


def _family(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]


def _cpu_s(pid: int) -> float:
    total = 0.0
    for one in _family(pid):
        try:
            times = psutil.Process(one).cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
