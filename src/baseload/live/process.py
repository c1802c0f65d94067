"""A worker's process and the files that outlive the control process: who it is, whether it lives, how it ends.

A process is known by pid, start time and boot, so that a reused pid is never mistaken for a worker.
"""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from baseload.files import write_whole

_LOG_LIMIT_BYTES = 4 << 20
_LOG_KEPT_BYTES = 256 << 10
_TAIL_BYTES = 4_000
_TAIL_LINES = 20


class Identity(msgspec.Struct, frozen=True):
    """One process of one boot of this machine."""

    pid: int
    start_ticks: int  # since boot, from /proc/PID/stat
    boot_id: str


class Registration(msgspec.Struct, frozen=True):
    """What is written about a worker before it counts as started; `process` is None from just before the spawn."""

    replica_id: str
    model: str
    process: Identity | None


@dataclass(frozen=True, slots=True)
class WorkerFiles:
    """The files of one replica in DIR/workers."""

    folder: Path
    replica_id: str

    @property
    def registration(self) -> Path:
        """Who it is, for a control process that comes later."""
        return self.folder / f"{self.replica_id}.json"

    @property
    def ready(self) -> Path:
        """Written by the worker when it serves: its URL."""
        return self.folder / f"{self.replica_id}.ready"

    @property
    def lease(self) -> Path:
        """Touched by the control process; a worker whose lease is old ends itself."""
        return self.folder / f"{self.replica_id}.lease"

    @property
    def log(self) -> Path:
        """What the worker printed."""
        return self.folder / f"{self.replica_id}.log"

    def register(self, registration: Registration) -> None:
        """Write who it is, whole or not at all."""
        write_whole(self.registration, [msgspec.json.encode(registration)])

    def read_registration(self) -> Registration | None:
        """Who it is, if that can be read."""
        try:
            return msgspec.json.decode(self.registration.read_bytes(), type=Registration)
        except (OSError, msgspec.MsgspecError):
            return None

    def read_url(self) -> str:
        """The URL it serves at; "" while it does not."""
        try:
            found = json.loads(self.ready.read_text())
        except (OSError, ValueError):
            return ""
        url = found.get("ready", "") if isinstance(found, dict) else ""
        return url.rstrip("/") if isinstance(url, str) else ""

    def touch_lease(self) -> None:
        """Say that a control process is there."""
        fd = os.open(self.lease, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.utime(fd)
        finally:
            os.close(fd)

    def forget(self) -> None:
        """Delete all but the log."""
        for path in (self.registration, self.ready, self.lease):
            path.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The last lines it printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])

    def bound_log(self) -> None:
        """Cut the log to its end where it has grown too long; the worker goes on appending."""
        try:
            if self.log.stat().st_size <= _LOG_LIMIT_BYTES:
                return
            with self.log.open("r+b") as file:
                file.seek(-_LOG_KEPT_BYTES, os.SEEK_END)
                end = file.read()
                file.truncate(0)
                file.seek(0)
                file.write(b"[earlier lines were cut]\n" + end)
        except OSError:
            return  # the log is for people; a worker goes on without it


def known_files(folder: Path) -> list[WorkerFiles]:
    """The replicas registered in a folder, by name."""
    return [WorkerFiles(folder, path.stem) for path in sorted(folder.glob("*.json"))]


def prune_logs(folder: Path, *, keep: int) -> None:
    """Delete the logs of workers long gone."""
    logs = [path for path in folder.glob("*.log") if not path.with_suffix(".json").exists()]
    for path in sorted(logs, key=lambda path: path.stat().st_mtime)[:-keep]:
        path.unlink(missing_ok=True)


def boot_id() -> str:
    """Names this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def identify(pid: int) -> Identity | None:
    """The process that has this pid now; None when there is none, or only what is left of an ended one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return Identity(pid, int(rest[18]), boot_id())


def find_by_argument(argument: str) -> Identity | None:
    """The process with this command-line argument: a worker whose control was killed between spawn and register."""
    for process in psutil.process_iter(["cmdline"]):
        if argument in (process.info["cmdline"] or ()):
            return identify(process.pid)
    return None


def open_pidfd(identity: Identity) -> int:
    """A descriptor of exactly this process, or −1 when it is gone."""
    try:
        fd = os.pidfd_open(identity.pid)
    except OSError:
        return -1
    if identify(identity.pid) != identity:
        os.close(fd)
        return -1
    return fd


def send(pidfd: int, number: signal.Signals) -> None:
    """Signal the process, if it is still there."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def kill_group(pid: int) -> None:
    """Kill the worker's session with everything it started. Only while its leader is known to be there."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
