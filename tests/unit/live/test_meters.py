"""Energy meters: counters that wrap, shares of workers, and honesty where there is none."""

import asyncio
from pathlib import Path

import pytest

from baseload.domain.events import EnergyMeasured
from baseload.live import meters
from baseload.live.meters import NvmlMeter, RaplMeter, describe, open_meter


@pytest.fixture
def powercap(tmp_path):
    for name, uj in (("intel-rapl:0", 1_000), ("intel-rapl:0:0", 5), ("intel-rapl:1", 9_900)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{uj}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000\n")
    return tmp_path


def set_counters(powercap, package_0: int, package_1: int) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").write_text(f"{package_0}\n")
    (powercap / "intel-rapl:1" / "energy_uj").write_text(f"{package_1}\n")


def test_packages_are_summed_wraps_counted_and_shared_by_processor_time(powercap, monkeypatch):
    busy, used = {"s": 100.0}, {1: 10.0, 2: 0.0}
    monkeypatch.setattr(meters, "_busy_s", lambda: busy["s"])
    monkeypatch.setattr(meters, "_cpu_s", lambda pid: used[pid])
    meter = open_meter(powercap)
    assert isinstance(meter, RaplMeter)
    set_counters(powercap, 1_100, 9_950)
    meter.read({"a": 1, "b": 2})
    set_counters(powercap, 1_400, 50)  # 300, and 100 over the wrap
    busy["s"], used[1], used[2] = 104.0, 11.0, 2.0
    assert meter.read({"a": 1, "b": 2}) == {"a": 100, "b": 200}  # 1 and 2 of 4 busy seconds


async def test_a_meter_that_fails_is_told_and_left(caplog):
    class Broken:
        basis = "rapl"

        def read(self, pids):
            raise OSError("the counter is gone")

        def close(self):
            pass

    energy = meters.EnergyMeter(Broken(), pids=dict, tell=lambda event: None, interval_s=0.0)
    energy.start()
    await energy._task
    await energy.close()
    assert "energy is modelled" in caplog.text


async def test_readings_are_told_by_replica():
    class Steady:
        basis = "nvml"

        def read(self, pids):
            return dict.fromkeys(pids, 5) | {"idle": 0}

        def close(self):
            pass

    told = asyncio.Queue()
    energy = meters.EnergyMeter(Steady(), pids=lambda: {"a": 1}, tell=told.put_nowait, interval_s=0.0)
    energy.start()
    assert await told.get() == EnergyMeasured("a", 5, "nvml")
    await energy.close()


def test_no_meter_is_said_to_be_modelled(tmp_path):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is an accelerator with a meter")
    assert open_meter(tmp_path) is None
    assert describe(tmp_path).startswith("modelled")


def test_rapl_is_said_to_be_measured(powercap):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is an accelerator with a meter")
    assert describe(powercap).startswith("measured: RAPL")


class FakeNvml:
    """Two devices; processes as set."""

    def __init__(self) -> None:
        self.mj = [1_000, 2_000]
        self.running: list[list[int]] = [[], []]

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, device):  # noqa: N802
        return self.mj[device]

    def nvmlDeviceGetComputeRunningProcesses(self, device):  # noqa: N802
        return [type("P", (), {"pid": pid}) for pid in self.running[device]]

    def nvmlShutdown(self):  # noqa: N802
        pass


def test_an_accelerator_is_shared_among_the_workers_on_it(monkeypatch):
    monkeypatch.setattr(meters, "_family", lambda pid: [pid, pid + 1])
    nvml = FakeNvml()
    meter = NvmlMeter(nvml)
    nvml.mj = [1_010, 2_003]
    nvml.running = [[11, 20, 99], [10]]  # 11 is a child of 10; 99 is somebody else's
    assert meter.read({"a": 10, "b": 20, "c": 30}) == {"a": 5_000 + 3_000, "b": 5_000, "c": 0}
