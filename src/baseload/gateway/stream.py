"""Server-sent events on their way through: passed on as they are, but for the usage chunk and the end."""

import msgspec

from baseload.domain.errors import Reason
from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.wire.openai_answers import Phases, Usage
from baseload.wire.openai_errors import clients_fault

LONGEST_EVENT_BYTES = 4 << 20


class _Tail(msgspec.Struct, frozen=True):
    """What is read of a last chunk or a whole body."""

    usage: Usage | None = None
    baseload: Phases | None = None
    choices: list[msgspec.Raw] | None = None


_decoder = msgspec.json.Decoder(_Tail)


def read_whole(body: bytes) -> tuple[TokenCounts, PhaseTimes]:
    """Usage and phases of a whole answer; raises `msgspec.DecodeError` where it is not JSON of that form."""
    tail = _decoder.decode(body)
    return _tokens(tail.usage), _phases(tail.baseload)


class EventStream:
    """Cuts a byte stream at event boundaries; sees usage, errors and the end in passing.

    `feed` returns the bytes to pass on. Once `done`, the stream has said [DONE], which is not passed on.
    """

    __slots__ = ("_carry", "_events", "_withhold_usage", "done", "error", "failed", "fault", "phases", "usage")

    def __init__(self, *, withhold_usage: bool) -> None:
        self._withhold_usage = withhold_usage
        self._carry = b""
        self._events = 0
        self.done = False
        self.failed = False  # the worker sent an error event
        self.error = b""  # the JSON of that event
        self.fault: Reason | None = None  # what the client did wrong, where the error says so
        self.usage: TokenCounts | None = None
        self.phases = PhaseTimes()

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that this chunk completes; raises `ValueError` on an event beyond all bounds."""
        if self._carry:
            chunk = self._carry + chunk
            self._carry = b""
        if not chunk.endswith(b"\n\n"):
            cut = max(chunk.rfind(b"\n\n") + 2, chunk.rfind(b"\n\r\n") + 3)
            if cut < 3:
                cut = 0
            self._carry = chunk[cut:]
            chunk = chunk[:cut]
            if len(self._carry) > LONGEST_EVENT_BYTES:
                raise ValueError(f"an event is over {LONGEST_EVENT_BYTES} bytes")
        marks = [at for at in (chunk.find(b'"usage"'), chunk.find(b"[DONE]"), chunk.find(b'"error"')) if at >= 0]
        if marks:  # only the events from the first mark on need a closer look
            start = max(chunk.rfind(b"\n\n", 0, min(marks)) + 2, chunk.rfind(b"\n\r\n", 0, min(marks)) + 3)
            start = 0 if start < 3 else start
            chunk = chunk[:start] + self._inspect(chunk[start:])
        self._events += chunk.count(b"data: {") - chunk.count(b'"content":""')  # the first chat event has no token
        return chunk

    def counts(self, prompt_estimate: int) -> TokenCounts:
        """What the worker said it used; where it could not say any more, the events passed on count as tokens."""
        if self.usage is not None:
            return self.usage
        return TokenCounts(prompt=prompt_estimate if self._events else 0, completion=max(0, self._events))

    def _inspect(self, block: bytes) -> bytes:
        kept = []
        for event in block.replace(b"\r\n", b"\n").split(b"\n\n"):
            data = event[5:].strip() if event.startswith(b"data:") else b""
            if data == b"[DONE]":
                self.done = True
                break
            if data.startswith(b"{") and self._swallows(data):
                continue
            if event:
                kept.append(event + b"\n\n")
        return b"".join(kept)

    def _swallows(self, data: bytes) -> bool:
        """Note what this event tells; whether it is the usage chunk that the client did not ask for."""
        if data.startswith((b'{"error"', b'{ "error"')):
            self.failed = True
            self.error = data
            self.fault = clients_fault(data)
            return False
        if b'"usage"' not in data:
            return False
        try:
            tail = _decoder.decode(data)
        except msgspec.DecodeError:
            return False  # not ours to judge: it goes on as it is
        if tail.usage is None:
            return False
        self.usage = _tokens(tail.usage)
        self.phases = _phases(tail.baseload)
        return self._withhold_usage and not tail.choices


def _tokens(usage: Usage | None) -> TokenCounts:
    if usage is None:
        return TokenCounts()
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details is not None else 0
    return TokenCounts(prompt=usage.prompt_tokens, cached_in=cached or 0, completion=usage.completion_tokens)


def _phases(phases: Phases | None) -> PhaseTimes:
    if phases is None:
        return PhaseTimes()
    return PhaseTimes(queue_ns=phases.queue_ns, prefill_ns=phases.prefill_ns, decode_ns=phases.decode_ns)
