"""Putting the live world together: a control process on a data directory, with workers or offline."""

import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from baseload.core.control import POLICY_VERSION
from baseload.domain.errors import JournalError
from baseload.domain.events import ControlStarted
from baseload.domain.units import NS_PER_S
from baseload.live.clock import Clock
from baseload.live.datadir import DataDir
from baseload.live.driver import LiveControl
from baseload.live.journal import LiveJournal
from baseload.live.launcher import LauncherOptions, ProcessLauncher
from baseload.live.meters import EnergyMeter, open_meter
from baseload.live.probe import Probe
from baseload.live.recovery import Recovered, recover
from baseload.live.spool import Spool
from baseload.live.store import FILE, Store
from baseload.live.writer import JournalOptions
from baseload.net.client import Client

_log = logging.getLogger("baseload.live")
_SWITCH_S = 0.0005
_AHEAD_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """What a control process needs to know. `seed` is that of a new data directory; None draws one."""

    launcher: LauncherOptions
    journal: JournalOptions = field(default_factory=JournalOptions)
    seed: int | None = None
    settings_sha256: str = ""
    snapshot_every: int = 25_000  # events; a restart replays at most about so many
    metered: bool = True  # read energy meters where there are any


async def start_control(data_dir: Path, *, options: ControlOptions) -> LiveControl:
    """Recover what is in `data_dir`, adopt or end the workers found, and run; end it with `stop`.

    Raises ControlError when another process uses the directory, JournalError when it cannot be read or written.
    """
    # The committing thread and the event loop share the interpreter; the default of 5 ms would be felt by requests.
    sys.setswitchinterval(_SWITCH_S)
    async with AsyncExitStack() as stack:
        folder, control, recovered = await _open(stack, data_dir, options)
        client = Client()
        stack.push_async_callback(client.close)
        launcher = ProcessLauncher(folder.workers, tell=control.tell, probe=Probe(client), options=options.launcher)
        launcher.open()
        stack.push_async_callback(_leave, launcher, control)
        control.attach(
            launcher,
            on_failed_dispatch=launcher.look_at,
            spares=lambda: launcher.spares,
            kill_workers=launcher.kill_all,
        )
        control.tell(ControlStarted(POLICY_VERSION, recovered.machine.seed))
        # By address, not by model: a local replica may have outlived its model's move to a remote source.
        remote = {(spec.name, spec.source) for spec in control.models() if spec.is_remote}
        await launcher.reconcile([one for one in control.status().replicas if (one.model, one.url) not in remote])
        control.take_snapshot()
        await control.sync()
        if options.metered:
            meter = EnergyMeter(open_meter(), pids=lambda: launcher.pids, tell=control.tell)
            meter.start()
            stack.push_async_callback(meter.close)
        control.closers.append(stack.pop_all().aclose)
    return control


def calm_collector() -> None:
    """Let the garbage collector pass over what lives since the start, and look at the rest a tenth as often.

    Requests and connections leave no cycles behind: they go by reference count. Saves 4 µs per request and the
    pauses of looking through everything. For a process that runs a control and nothing else, once it is composed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@asynccontextmanager
async def open_offline(data_dir: Path, *, options: JournalOptions | None = None) -> AsyncIterator[LiveControl]:
    """The control of a data directory that no process runs on, for administration and reading; starts no worker.

    Raises ControlError when a control process runs there.
    """
    chosen = ControlOptions(launcher=LauncherOptions(cache_dir=data_dir), journal=options or JournalOptions())
    async with AsyncExitStack() as stack:
        _, control, _ = await _open(stack, data_dir, chosen)
        control.go_offline()
        yield control


async def _open(
    stack: AsyncExitStack, data_dir: Path, options: ControlOptions
) -> tuple[DataDir, LiveControl, Recovered]:
    folder = DataDir(data_dir)
    folder.open()
    stack.callback(folder.close)
    store = Store(data_dir / FILE)
    stack.callback(store.close)
    store.open()
    reader = Store(data_dir / FILE)
    stack.callback(reader.close)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(6))
    recovered = recover(store, folder.spool, seed=seed, policy_version=POLICY_VERSION)
    if recovered.warning:
        _log.warning("After an unclean end: %s.", recovered.warning)
    clock = Clock(not_before_ns=recovered.at_ns)
    ahead_s = (recovered.at_ns - time.time_ns()) / NS_PER_S
    if ahead_s > _AHEAD_S:
        _log.warning("The clock is %.0f s behind the journal's last record; time goes on from that.", ahead_s)
    store.write_header(
        recovered.seq,
        clock.now_ns(),
        version=version("baseload"),
        policy_version=POLICY_VERSION,
        seed=recovered.machine.seed,
        settings_sha256=options.settings_sha256,
    )
    journal = LiveJournal(
        store, Spool(folder.spool), options=options.journal, now_ns=clock.now_ns, on_state=_say_journal_state
    )
    journal.start(committed_seq=recovered.seq)
    control = LiveControl(
        machine=recovered.machine,
        seq=recovered.seq,
        clock=clock,
        journal=journal,
        reader=reader,
        snapshot_every=options.snapshot_every,
        announce=folder.announce,
    )
    stack.push_async_callback(control.close)
    return folder, control, recovered


async def _leave(launcher: ProcessLauncher, control: LiveControl) -> None:
    """End the workers; where the machine failed, leave them for the control process that comes next."""
    if control.has_failed:
        launcher.detach()
    else:
        await launcher.close()


def _say_journal_state(failure: JournalError | None) -> None:
    if failure is None:
        _log.warning("The journal can be written again; new requests are taken.")
    else:
        _log.error("%s New requests are refused until then.", failure)
