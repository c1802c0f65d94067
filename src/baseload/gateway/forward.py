"""One request on its way: the router's `Sink`, and the handler of the worker's answer.

Its states: waiting (queued, or between attempts) → called (a worker has it) → begun (the client has a first byte)
→ over. Before `begun` a failure is the router's to repair (`DispatchFailed`); after it, the client is told.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Protocol

import msgspec

from baseload.core.ports import Control
from baseload.domain.actions import Dispatch, Refuse
from baseload.domain.errors import BaseloadError, Reason, Refusal
from baseload.domain.events import DispatchFailed, FirstByteSent, RequestFinished
from baseload.domain.model import Remote
from baseload.domain.work import Outcome, PhaseTimes, Request, Tier, TokenCounts
from baseload.gateway.metrics import Metrics
from baseload.gateway.stream import EventStream, read_whole
from baseload.net.client import Call, Client, Fault
from baseload.net.server import Exchange
from baseload.wire.openai import TIER_HEADER
from baseload.wire.openai_answers import DONE
from baseload.wire.openai_errors import JSON, error_body, error_event, error_of_worker

_OK = Outcome.OK
LONGEST_BODY_BYTES = 64 << 20
_LOCAL = Remote()
_OVERLOADED = (408, 429, 503)
_NOT_THE_CLIENTS_FAULT = (401, 403)  # the worker refused us, not the client
_REASON_OF_FAULT = {
    Fault.CONNECT: Reason.WORKER_LOST,
    Fault.LOST: Reason.WORKER_LOST,
    Fault.FIRST_BYTE_TIMEOUT: Reason.WORKER_ERROR,
    Fault.IDLE_TIMEOUT: Reason.WORKER_ERROR,
    Fault.PROTOCOL: Reason.WORKER_ERROR,
    Fault.POOL_FULL: Reason.QUEUE_FULL,
}


def _tier_line(request: Request) -> str:
    """The class of service for the worker, where it is not the usual one."""
    return "" if request.tier is Tier.DEFAULT else f"{TIER_HEADER}: {request.tier.value}\r\n"


def _how_it_ended(stream: EventStream) -> tuple[Outcome, Reason | None]:
    if not stream.failed:
        return Outcome.OK, None
    return (Outcome.FAILED, Reason.WORKER_ERROR) if stream.fault is None else (Outcome.REJECTED, stream.fault)


class Office(Protocol):
    """What a forward needs of the gateway."""

    control: Control
    client: Client
    metrics: Metrics
    in_flight: int
    is_leaving: bool
    first_byte_timeout_s: float
    idle_timeout_s: float

    secret_line: Callable[[str], str]

    def after_settling(self, send: Callable[[], None]) -> None:
        """Call `send`, which lets the last byte of an answer leave, once everything told so far is settled."""


class Forward(msgspec.Struct, eq=False):
    """One open client request. Every way out goes through `_over`, exactly once.

    (A Struct because one is made per request, and its constructor costs an eighth of one in Python.)
    """

    _office: Office
    _exchange: Exchange
    _request: Request
    _body: bytes
    _withhold_usage: bool
    _lines: str  # headers of the answer, as they go out
    _opened_s: float
    _began_s: float = 0.0
    _call: Call | None = None
    _replica_id: str = ""
    _begun: bool = False
    _is_over: bool = False
    _status: int = 0  # of the attempt under way, as is what follows
    _content_type: str = JSON
    _chunks: list[bytes] = []
    _size: int = 0
    _stream: EventStream | None = None

    def open(self) -> None:
        """Hand the request to the router."""
        self._office.in_flight += 1
        self._exchange.on_disconnect = self._client_gone
        try:
            self._office.control.open(self._request, self)
        except Exception:
            if not self._is_over:
                self._over(Outcome.FAILED, None, TokenCounts())
            raise

    # -- what the router says ---------------------------------------------------------------------------------------

    def dispatch(self, action: Dispatch) -> None:
        """Send the request to this replica."""
        if self._is_over:
            return
        office, request = self._office, self._request
        self._forget_attempt()
        self._replica_id = action.replica_id
        lines = f"content-type: {JSON}\r\nx-request-id: {request.request_id}\r\n{_tier_line(request)}"
        spec = office.control.model(request.model)
        # By address too: the model may be another by now, and a secret goes to no other place than its own.
        remote = spec.remote if spec is not None and spec.source == action.url else _LOCAL
        try:
            self._call = office.client.send(
                action.url,
                request.endpoint.value,
                self._body,
                self,
                lines=lines + office.secret_line(remote.secret) if remote.secret else lines,
                ca_file=remote.ca_file,
                repeatable=True,  # a completion changes nothing: asking twice costs time only
                first_byte_timeout_s=office.first_byte_timeout_s,
                idle_timeout_s=office.idle_timeout_s,
            )
        except (BaseloadError, ValueError) as error:
            asyncio.get_running_loop().call_soon(self.on_error, Fault.CONNECT, str(error))

    def refuse(self, action: Refuse) -> None:
        """Answer with an error; the router has forgotten the request."""
        if self._is_over:
            return
        self._give_up_call()
        refusal = Refusal(action.reason, action.message, retry_after_ns=action.retry_after_ns)
        self._over(Outcome.FAILED if self._replica_id else Outcome.REFUSED, action.reason, TokenCounts())
        if self._begun:
            self._exchange.end(error_event(refusal))
        else:
            status, headers, body = error_body(refusal)
            self._exchange.respond(status, body, headers=headers, lines=self._lines)

    # -- what the worker says ---------------------------------------------------------------------------------------

    def on_headers(self, status: int, headers: dict[str, str]) -> None:
        """The worker's status decides how its body is read."""
        self._status = status
        self._content_type = headers.get("content-type", JSON)
        if status == 200 and self._request.stream and self._content_type.startswith("text/event-stream"):
            self._stream = EventStream(withhold_usage=self._withhold_usage)

    def on_body(self, chunk: bytes) -> None:
        """Pass a stream's events on at once; keep anything else until it is whole."""
        if self._is_over:
            return
        if self._stream is not None:
            self._relay(self._stream, chunk)
            return
        self._size += len(chunk)
        self._chunks.append(chunk)
        if self._size > LONGEST_BODY_BYTES:
            self._give_up_call()
            self._attempt_failed(Reason.WORKER_ERROR, f"the answer is over {LONGEST_BODY_BYTES} bytes")

    def on_end(self) -> None:
        """The worker's answer is complete."""
        self._call = None
        if self._is_over:
            return
        status = self._status
        if self._stream is not None:
            self._stream_ended(self._stream)
        elif status == 200:
            self._whole(b"".join(self._chunks))
        elif status in _OVERLOADED:
            self._attempt_failed(Reason.QUEUE_FULL, f"the worker is overloaded ({status})")
        elif 400 <= status < 500 and status not in _NOT_THE_CLIENTS_FAULT:
            self._rejected(status, b"".join(self._chunks))
        else:
            # Not what it said: that may quote the prompt, and this is journaled.
            self._attempt_failed(Reason.WORKER_ERROR, f"the worker answered {status}")

    def on_error(self, fault: Fault, detail: str) -> None:
        """The worker's answer will not come, or not completely."""
        self._call = None
        if not self._is_over:
            self._attempt_failed(_REASON_OF_FAULT[fault], detail)

    # -- ends -------------------------------------------------------------------------------------------------------

    def _relay(self, stream: EventStream, chunk: bytes) -> None:
        try:
            passing = stream.feed(chunk)
        except ValueError as error:
            self._give_up_call()
            self._attempt_failed(Reason.WORKER_ERROR, str(error))
            return
        if not self._begun and (passing or stream.done):
            if stream.failed:  # its first word is an error: another replica may do better, or the client is at fault
                self._give_up_call()
                if stream.fault is not None:
                    self._rejected(400, stream.error)
                    return
                self._attempt_failed(Reason.WORKER_ERROR, passing[:300].decode("utf-8", "replace").strip())
                return
            if not stream.done and b"data:" not in passing:
                return  # comments that only keep the connection alive
            self._begin()
        if stream.done:
            outcome, reason = _how_it_ended(stream)
            self._finish(outcome, reason, stream.counts(self._request.prompt_tokens_estimate), stream.phases)
            self._office.after_settling(partial(self._exchange.end, passing + DONE))
        elif passing:
            self._exchange.write(passing)

    def _begin(self) -> None:
        self._begun = True
        self._began_s = perf_counter()
        self._office.control.tell(FirstByteSent(self._request.request_id))
        self._exchange.on_writable = self._client_takes
        self._exchange.start(200, content_type=self._content_type, lines=self._lines)

    def _stream_ended(self, stream: EventStream) -> None:
        """The HTTP answer ended, but the stream did not say [DONE]."""
        if self._begun and stream.failed:  # the worker has told the client why
            tokens = stream.counts(self._request.prompt_tokens_estimate)
            self._finish(*_how_it_ended(stream), tokens, stream.phases)
            self._office.after_settling(self._exchange.end)
        else:
            self._attempt_failed(Reason.WORKER_LOST, "the stream ended before it was done")

    def _whole(self, body: bytes) -> None:
        try:
            tokens, phases = read_whole(body)
        except msgspec.DecodeError as error:
            self._attempt_failed(Reason.WORKER_ERROR, f"the worker's answer is not OpenAI's JSON: {error}")
            return
        self._began_s = perf_counter()
        self._finish(_OK, None, tokens, phases)
        answer = partial(self._exchange.respond, 200, body, content_type=self._content_type, lines=self._lines)
        self._office.after_settling(answer)

    def _rejected(self, status: int, body: bytes) -> None:
        reason, body = error_of_worker(body)
        self._finish(Outcome.REJECTED, reason, TokenCounts(), PhaseTimes())
        self._office.after_settling(partial(self._exchange.respond, status, body, lines=self._lines))

    def _attempt_failed(self, reason: Reason, detail: str) -> None:
        """Before the first byte the router decides; after it, the client gets an error event and no [DONE]."""
        if not self._begun:
            self._forget_attempt()
            self._office.metrics.retries += 1
            self._office.control.tell(DispatchFailed(self._request.request_id, self._replica_id, reason, detail))
            return
        assert self._stream is not None
        tokens = self._stream.counts(self._request.prompt_tokens_estimate)
        self._finish(Outcome.FAILED, reason, tokens, self._stream.phases)
        hint = "What was sent before this is all there is; ask again."
        event = error_event(Refusal(reason, f"The worker failed in the middle: {detail}.", hint=hint))
        self._office.after_settling(partial(self._exchange.end, event))

    def _client_gone(self) -> None:
        """The client closed its connection, or we do: end the worker's work at once."""
        self._give_up_call()
        if self._office.is_leaving:
            self._cut_off()
            return
        stream = self._stream
        tokens = stream.counts(self._request.prompt_tokens_estimate) if stream is not None else TokenCounts()
        phases = stream.phases if stream is not None else PhaseTimes()
        self._finish(Outcome.CANCELLED, Reason.CLIENT_GONE, tokens, phases)

    def _cut_off(self) -> None:
        """We end before the answer does, and say so: the client did not go."""
        refusal = Refusal(Reason.SHUTTING_DOWN, "Baseload has shut down before this answer was done.")
        stream = self._stream
        tokens = stream.counts(self._request.prompt_tokens_estimate) if stream is not None else TokenCounts()
        phases = stream.phases if stream is not None else PhaseTimes()
        self._finish(Outcome.FAILED, Reason.SHUTTING_DOWN, tokens, phases)
        if self._begun:
            self._office.after_settling(partial(self._exchange.end, error_event(refusal)))
        else:
            status, headers, body = error_body(refusal)
            answer = partial(self._exchange.respond, status, body, headers=headers, lines=self._lines)
            self._office.after_settling(answer)

    def _client_takes(self, writable: bool) -> None:
        """The client's connection is full, or has room again: so is the worker slowed down."""
        if self._call is not None:
            if writable:
                self._call.resume()
            else:
                self._call.pause()

    def _finish(self, outcome: Outcome, reason: Reason | None, tokens: TokenCounts, phases: PhaseTimes) -> None:
        """Tell the router. What ends the answer waits for `after_settling`."""
        self._over(outcome, reason, tokens)
        self._office.control.tell(RequestFinished(self._request.request_id, outcome, reason, tokens, phases))

    def _over(self, outcome: Outcome, reason: Reason | None, tokens: TokenCounts) -> None:
        assert not self._is_over
        self._is_over = True
        self._exchange.on_disconnect = self._exchange.on_writable = None
        if self._call is not None and self._call.paused:
            self._call.resume()  # nobody would later
        self._office.in_flight -= 1
        now_s = perf_counter()
        self._office.metrics.ended(
            self._request.model,
            outcome,
            reason,
            tokens,
            total_s=now_s - self._opened_s,
            first_s=self._began_s - self._opened_s if self._began_s else 0.0,
        )

    def _give_up_call(self) -> None:
        if self._call is not None:
            self._call.abort()
            self._call = None

    def _forget_attempt(self) -> None:
        self._status = self._size = 0
        self._content_type = JSON
        self._chunks = []
        self._stream = None
