"""The journal's bytes: events as msgpack in checked frames, ledger entries as JSON, and both as words for people.

A frame is `length u32, crc32 u32, seq u64, at_ns u64` (little endian) and `length` bytes of msgpack. The checksum
covers seq, at_ns and body, so a torn, stale or flipped frame is told from a whole one.
"""

import struct
import zlib
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import msgspec

from baseload.domain.errors import JournalError
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
from baseload.domain.work import Decision, Entry, ReplicaEntry, RequestEntry

FORMAT = 2  # of spool, events, entries, usage and snapshots together; an older one is read, a newer one refused
SEGMENT_MAGIC = b"BLSPOOL1"
FRAME_HEAD_BYTES = 24
MAX_BODY_BYTES = 16 << 20
_UNSHOWN = frozenset({"secret_sha256"})
_NEWER = "A newer version may have written it."

_HEAD = struct.Struct("<IIQQ")
_STAMP = struct.Struct("<QQ")
_event_encoder = msgspec.msgpack.Encoder()
_event_decoder = msgspec.msgpack.Decoder(Event)
_entry_encoder = msgspec.json.Encoder()
_entry_decoder = msgspec.json.Decoder(Entry)


class Frame(NamedTuple):
    """One event as it stands in the spool."""

    seq: int
    at_ns: int
    body: bytes


def encode_event(event: Event) -> bytes:
    """The event's msgpack body."""
    return _event_encoder.encode(event)


def decode_event(body: bytes) -> Event:
    """The event of a body; raises JournalError when it is none of ours."""
    try:
        event: Event = _event_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise JournalError(f"A journal record cannot be read: {error}.", hint=_NEWER) from error
    return event


def encode_entry(entry: Entry) -> bytes:
    """The entry as JSON: a bill that can be read with any SQLite shell."""
    return _entry_encoder.encode(entry)


def decode_entry(body: bytes | str) -> Entry:
    """The entry of its JSON; raises JournalError when it is none of ours."""
    try:
        entry: Entry = _entry_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise JournalError(f"A ledger entry cannot be read: {error}.", hint=_NEWER) from error
    return entry


def seal(snapshot: bytes) -> bytes:
    """A machine's snapshot with its checksum before it."""
    return zlib.crc32(snapshot).to_bytes(4, "little") + snapshot


def unseal(data: bytes) -> bytes:
    """The snapshot that was sealed; raises JournalError when it is damaged."""
    if len(data) < 4 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise JournalError("A snapshot is damaged: its checksum does not match.")
    return data[4:]


def frame(seq: int, at_ns: int, body: bytes) -> bytes:
    """The frame of one event."""
    stamp = _STAMP.pack(seq, at_ns)
    return _HEAD.pack(len(body), zlib.crc32(body, zlib.crc32(stamp)), seq, at_ns) + body


def read_frames(data: bytes, *, start: int = 0) -> tuple[list[Frame], str]:
    """All whole frames from `start`, and why reading ended before the end of data ("" when it did not)."""
    found: list[Frame] = []
    at, end = start, len(data)
    while at < end:
        if end - at < FRAME_HEAD_BYTES:
            return found, f"torn head at byte {at}"
        length, crc, seq, at_ns = _HEAD.unpack_from(data, at)
        body_at = at + FRAME_HEAD_BYTES
        if length > MAX_BODY_BYTES:
            return found, f"impossible length at byte {at}"
        if end - body_at < length:
            return found, f"torn body at byte {at}"
        body = data[body_at : body_at + length]
        if zlib.crc32(body, zlib.crc32(data[at + 8 : body_at])) != crc:
            return found, f"wrong checksum at byte {at}"
        found.append(Frame(seq, at_ns, body))
        at = body_at + length
    return found, ""


def label_of(value: Event | Entry) -> tuple[str, str, str]:
    """The tag under which a record stands, what it is about, and the model concerned ("" where it does not say)."""
    kind, subject_of = _LABELS[type(value)]
    subject, model = subject_of(value)
    return kind, subject, model


def describe(value: Event | Entry) -> dict[str, object]:
    """The record's fields by name, in plain values, for people and JSON."""
    return _fields(value)


def _fields(value: msgspec.Struct) -> dict[str, object]:
    return {name: _plain(getattr(value, name)) for name in value.__struct_fields__ if name not in _UNSHOWN}


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return _fields(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


_SUBJECTS: dict[type[msgspec.Struct], Callable[..., tuple[str, str]]] = {
    ModelPut: lambda e: (e.spec.name, e.spec.name),
    ModelRemoved: lambda e: (e.model, e.model),
    KeyCreated: lambda e: (e.key.key_id, ""),
    KeyRevoked: lambda e: (e.key_id, ""),
    RequestArrived: lambda e: (e.request.request_id, e.request.model),
    FirstByteSent: lambda e: (e.request_id, ""),
    RequestFinished: lambda e: (e.request_id, ""),
    DispatchFailed: lambda e: (e.request_id, ""),
    WorkerStarted: lambda e: (e.replica_id, ""),
    WorkerReady: lambda e: (e.replica_id, ""),
    WorkerExited: lambda e: (e.replica_id, ""),
    WorkerSampled: lambda e: (e.replica_id, ""),
    EnergyMeasured: lambda e: (e.replica_id, ""),
    ControlStarted: lambda e: (e.policy_version, ""),
    ShutdownAsked: lambda e: ("", ""),
    TimerFired: lambda e: (e.timer, ""),
    RequestEntry: lambda e: (e.request_id, e.model),
    ReplicaEntry: lambda e: (e.replica_id, e.model),
    Decision: lambda e: (e.subject, e.model),
}
_LABELS = {of: (str(of.__struct_config__.tag), subject_of) for of, subject_of in _SUBJECTS.items()}
