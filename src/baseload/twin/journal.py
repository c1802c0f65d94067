"""What a simulated world keeps of the control machine's answers: a journal as the live one's, and a digest of all."""

import hashlib
from collections.abc import Iterator, Sequence

import msgspec

from baseload.domain.actions import Action, Record
from baseload.domain.events import Event
from baseload.domain.work import Entry

_AT_ONCE = 1 << 16  # bytes


class JournalItem(msgspec.Struct, frozen=True):
    """One event as journaled, with what the machine answered."""

    at_ns: int
    event: Event
    actions: Sequence[Action]
    encoded: bytes  # the actions and their time

    def entries(self) -> Iterator[Entry]:
        """What it wrote to the ledger."""
        return (action.entry for action in self.actions if isinstance(action, Record))


class Digest:
    """SHA-256 over all actions and their times."""

    __slots__ = ("_encoder", "_sha", "_waiting")

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._encoder = msgspec.msgpack.Encoder()
        self._waiting = bytearray()  # digested many at a time

    def add(self, at_ns: int, actions: Sequence[Action]) -> None:
        """These were the actions at this instant."""
        waiting = self._waiting
        self._encoder.encode_into((at_ns, actions), waiting, -1)
        if len(waiting) > _AT_ONCE:
            self._sha.update(waiting)
            waiting.clear()

    def added(self, at_ns: int, actions: Sequence[Action]) -> bytes:
        """As `add`; their bytes."""
        encoded = self._encoder.encode((at_ns, actions))
        self._waiting += encoded
        return encoded

    def hex(self) -> str:
        """As it is now."""
        self._sha.update(self._waiting)
        self._waiting.clear()
        return self._sha.hexdigest()
