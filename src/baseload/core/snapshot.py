"""The control machine's state as bytes and back: MessagePack, versioned.

Its size is bounded by what the machine holds: keys, models, replicas, and the requests the queues and seats admit.
"""

from collections import OrderedDict

import msgspec
from msgspec import Struct

from baseload.core.admission import AdmissionState
from baseload.core.fleet import FleetState
from baseload.core.outbox import OutboxState
from baseload.core.router import RouterState
from baseload.domain.errors import JournalError
from baseload.domain.model import ModelSpec

FORMAT = 1


class ControlState(Struct):
    """The state that is not one machine's own."""

    seed: int
    policy_version: str
    now_ns: int = 0
    started_ns: int = 0
    span_due_ns: int = 0
    shutting_down: bool = False
    forced: bool = False
    is_over: bool = False
    specs: dict[str, ModelSpec] = {}


class Snapshot(Struct):
    """Everything."""

    control: ControlState
    outbox: OutboxState
    admission: AdmissionState
    router: RouterState
    fleet: FleetState


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as bytes, its format first."""
    return msgspec.msgpack.encode((FORMAT, snapshot))


def decode(data: bytes) -> Snapshot:
    """The snapshot in `data`. Raises JournalError for another format or damaged bytes."""
    try:
        version = msgspec.msgpack.decode(data, type=tuple[int, msgspec.Raw])
        if version[0] != FORMAT:
            raise JournalError(
                f"The snapshot has format {version[0]}; this version reads format {FORMAT}.",
                hint="Start the version that wrote it, or move the snapshot away to recover from the journal alone.",
            )
        return msgspec.msgpack.decode(version[1], type=Snapshot, dec_hook=_ordered)
    except msgspec.MsgspecError as error:
        raise JournalError(
            f"The snapshot is damaged: {error}.", hint="Move it away to recover from the journal alone."
        ) from error


def _ordered(kind: type, value: dict[object, object]) -> OrderedDict[object, object]:
    assert getattr(kind, "__origin__", kind) is OrderedDict
    return OrderedDict(value)
