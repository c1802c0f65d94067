"""Write the golden journals: events for the control machine, and the digest of the actions they must cause.

    python tests/golden/control/make_journals.py

A changed digest is a changed policy. Run this only when the change is meant, and then raise POLICY_VERSION in
`baseload/core/control.py`, so that older journals are not taken for replayable.
"""

import hashlib
from pathlib import Path

import msgspec

from baseload.core.control import POLICY_VERSION, ControlMachine
from baseload.domain.actions import Action, CancelTimer, Dispatch, SetTimer, StartWorker, StopWorker
from baseload.domain.errors import Reason
from baseload.domain.events import (
    ControlStarted,
    DispatchFailed,
    EnergyMeasured,
    Event,
    FirstByteSent,
    KeyCreated,
    KeyRevoked,
    ModelPut,
    ModelRemoved,
    RequestArrived,
    RequestFinished,
    ShutdownAsked,
    TimerFired,
    WorkerExited,
    WorkerReady,
    WorkerSampled,
    WorkerStarted,
)
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.rng import Rng
from baseload.domain.tenant import Key, KeyLimits
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.domain.work import Endpoint, Outcome, Request, TokenCounts

HERE = Path(__file__).parent
T0 = 1_790_000_000 * NS_PER_S


class Header(msgspec.Struct):
    """What a journal begins with."""

    policy_version: str
    seed: int
    events: int
    actions: int
    actions_sha256: str


class Writer:
    """A seeded world that answers the machine's actions, and writes down the events."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Rng(seed, "golden")
        self.machine = ControlMachine(seed=seed)
        self.now = T0
        self.journal: list[tuple[int, Event]] = []
        self.actions = 0
        self.digest = hashlib.sha256()
        self.due: list[tuple[int, int, Event]] = []
        self.timers: dict[str, int] = {}

    def tell(self, event: Event) -> None:
        """Step an event and let the world react."""
        self.journal.append((self.now, event))
        for action in self.machine.step(self.now, event):
            self.actions += 1
            self.digest.update(msgspec.msgpack.encode(action))
            self.react(action)

    def later(self, least_ms: int, most_ms: int, event: Event) -> None:
        """An event at a random time from now."""
        at_ns = self.now + (least_ms + self.rng.below(most_ms - least_ms)) * NS_PER_MS
        self.due.append((at_ns, len(self.due) + len(self.journal), event))

    def react(self, action: Action) -> None:
        """The world's part: workers start, requests are answered, some fail."""
        luck = self.rng.below(20)
        match action:
            case StartWorker():
                self.later(5, 50, WorkerStarted(action.replica_id, 100 + luck, ""))
                if luck:
                    self.later(300, 4_000, WorkerReady(action.replica_id, f"http://127.0.0.1:{9_000 + luck}"))
                else:
                    self.later(300, 4_000, WorkerExited(action.replica_id, 1, "ImportError: no engine"))
            case StopWorker():
                self.later(10, 500, WorkerExited(action.replica_id, 0))
            case Dispatch() if luck == 0:
                self.later(1, 20, DispatchFailed(action.request_id, action.replica_id, Reason.WORKER_LOST, "reset"))
                self.later(21, 40, WorkerExited(action.replica_id, -9))
            case Dispatch() if luck == 1:
                self.later(1, 20, DispatchFailed(action.request_id, action.replica_id, Reason.WORKER_ERROR, "503"))
            case Dispatch():
                tokens = TokenCounts(100, self.rng.below(100), self.rng.below(64))
                self.later(10, 300, FirstByteSent(action.request_id))
                self.later(300, 3_000, RequestFinished(action.request_id, Outcome.OK, None, tokens))
                self.later(10, 500, WorkerSampled(action.replica_id, WorkerSample(2, luck // 15, luck / 20)))
                self.later(10, 500, EnergyMeasured(action.replica_id, self.rng.below(10**7), "rapl"))
            case SetTimer():
                self.timers[action.timer] = action.at_ns
            case CancelTimer():
                self.timers.pop(action.timer, None)
            case _:
                pass

    def run_until(self, at_ns: int) -> None:
        """Let what is due happen, in order."""
        while True:
            timer = min(self.timers.items(), key=lambda item: (item[1], item[0]), default=("", 1 << 62))
            event = min(self.due, key=lambda item: item[:2], default=(1 << 62, 0, TimerFired("")))
            if min(timer[1], event[0]) > at_ns:
                break
            if timer[1] <= event[0]:
                self.now = max(self.now, self.timers.pop(timer[0]))
                self.tell(TimerFired(timer[0]))
            else:
                self.due.remove(event)
                self.now = max(self.now, event[0])
                self.tell(event[2])
        self.now = max(self.now, at_ns)

    def write(self, name: str) -> None:
        """The journal as MessagePack: header, then [at_ns, event] each."""
        header = Header(
            policy_version=POLICY_VERSION,
            seed=self.seed,
            events=len(self.journal),
            actions=self.actions,
            actions_sha256=self.digest.hexdigest(),
        )
        (HERE / f"{name}.msgpack").write_bytes(msgspec.msgpack.encode((header, self.journal)))
        print(f"{name}: {header}")


def day(seed: int) -> Writer:
    """Two models, two keys, load that comes and goes, crashes, a restart, an orderly end."""
    writer = Writer(seed)
    writer.tell(ControlStarted(POLICY_VERSION, seed))
    writer.tell(KeyCreated(Key("key_a", "a", "a" * 64, T0)))
    writer.tell(KeyCreated(Key("key_b", "b", "b" * 64, T0, limits=KeyLimits(120, 20_000, 8))))
    scaling = Scaling(0, 4, idle_ns=30 * NS_PER_S, scale_up_cooldown_ns=2 * NS_PER_S)
    limits = Admission(max_queue=40, max_wait_ns=20 * NS_PER_S, max_concurrency_per_replica=4)
    writer.tell(ModelPut(ModelSpec("guide", "/models/guide", scaling=scaling, admission=limits)))
    writer.tell(ModelPut(ModelSpec("cloud", "https://api.example.com/v1", admission=limits)))
    for number in range(400):
        burst = 40 if number % 100 < 60 else 1_500
        writer.run_until(writer.now + writer.rng.below(burst) * NS_PER_MS + writer.rng.below(1_000))
        model = "cloud" if writer.rng.below(5) == 0 else "guide"
        prefixes = tuple(writer.rng.below(50) for _ in range(writer.rng.below(4)))
        key_id = "key_b" if writer.rng.below(3) == 0 else "key_a"
        request_id = f"req_{number:024x}"
        request = Request(request_id, key_id, model, Endpoint.CHAT, 100, 64, 0, prefix_hashes=prefixes)
        writer.tell(RequestArrived(request))
        if writer.rng.below(25) == 0:
            writer.later(1, 900, RequestFinished(request_id, Outcome.CANCELLED, Reason.CLIENT_GONE, TokenCounts()))
        if number == 250:
            restart(writer)
        if number == 300:
            writer.tell(ModelPut(ModelSpec("guide", "/models/guide-2", scaling=scaling, admission=limits)))
            writer.tell(KeyRevoked("key_b"))
    writer.run_until(writer.now + 120 * NS_PER_S)
    writer.tell(ModelRemoved("cloud"))
    writer.tell(ShutdownAsked(10 * NS_PER_S))
    writer.run_until(writer.now + 120 * NS_PER_S)
    assert not writer.machine.open_entries(writer.now)
    return writer


def restart(writer: Writer) -> None:
    """The control process dies and comes back; every other worker lived on."""
    writer.timers.clear()
    writer.due = [item for item in writer.due if isinstance(item[2], WorkerExited)]
    writer.now += 2 * NS_PER_S
    writer.tell(ControlStarted(POLICY_VERSION, writer.seed))
    local = [replica.replica_id for replica in writer.machine.status(writer.now).replicas if replica.model == "guide"]
    for place, replica_id in enumerate(local):
        if place % 2:
            writer.tell(WorkerExited(replica_id, -9, "lost while control was down"))
        else:
            writer.tell(WorkerReady(replica_id, "http://127.0.0.1:9100"))


if __name__ == "__main__":
    for seed in (1, 2, 3):
        day(seed).write(f"day-{seed}")
