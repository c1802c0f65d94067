"""Clients and the gateway between them and the control machine, simulated: one `Client` per request.

It tells the control machine what the live gateway would tell it: RequestArrived, FirstByteSent, then exactly one
RequestFinished, or DispatchFailed and another attempt. It ends once: answered, refused, gone or cut.
"""

from typing import Protocol

from baseload.domain.actions import Dispatch, Refuse
from baseload.domain.errors import Reason
from baseload.domain.events import DispatchFailed, Event, FirstByteSent, RequestArrived, RequestFinished
from baseload.domain.work import Endpoint, Outcome, PhaseTimes, Request, TokenCounts
from baseload.twin.prefixes import router_hashes
from baseload.twin.workload import Arrival

NO_TOKENS, NO_PHASES = TokenCounts(), PhaseTimes()


class Exchange:
    """One attempt: a request as the worker holds it. The worker fills in what it did when it has ended."""

    __slots__ = ("cached", "client", "closed", "dispatch", "emitted", "phases", "seq_id", "worker")

    def __init__(self, client: "Client", dispatch: Dispatch) -> None:
        self.client = client
        self.dispatch = dispatch
        self.worker: Upstream | None = None  # set while a worker holds it
        self.emitted = 0  # tokens the worker had sent when it ended
        self.cached = 0  # prompt tokens it found in its prefix cache
        self.phases = NO_PHASES
        self.closed = False  # one of the two sides has hung up
        self.seq_id = ""  # under which the worker's batcher knows it

    def tokens(self) -> TokenCounts:
        """What the gateway counts of this attempt."""
        emitted = self.emitted if self.worker is None else self.worker.emitted(self)
        return TokenCounts(self.client.arrival.prompt_tokens if emitted else 0, self.cached, emitted)


class Upstream(Protocol):
    """A simulated worker, as the gateway sees it."""

    def hang_up(self, exchange: Exchange) -> None:
        """The gateway closed the connection: stop working for it."""

    def emitted(self, exchange: Exchange) -> int:
        """Tokens it has sent so far."""


class Gateway(Protocol):
    """What a client needs of the world."""

    @property
    def now_ns(self) -> int:
        """The present instant of the simulation."""

    def tell(self, event: Event) -> None:
        """Step the control machine."""

    def connect(self, exchange: Exchange) -> None:
        """Send the request towards the worker; ends in `Client.failed` or at the worker."""

    def ended(self, client: "Client") -> None:
        """The client's request is over."""


class Client:
    """One request from arrival to end."""

    __slots__ = (
        "arrival",
        "arrived_ns",
        "attempt",
        "ended_ns",
        "exchange",
        "finished_tokens",
        "first_byte_ns",
        "outcome",
        "reason",
        "request",
        "world",
    )

    def __init__(self, world: Gateway, arrival: Arrival, request: Request) -> None:
        self.world = world
        self.arrival = arrival
        self.request = request
        self.arrived_ns = world.now_ns
        self.attempt = 0
        self.exchange: Exchange | None = None
        self.first_byte_ns = 0
        self.ended_ns = 0
        self.outcome: Outcome | None = None
        self.reason: Reason | None = None
        self.finished_tokens = NO_TOKENS

    # -- what the control machine asks of it ------------------------------------------------------------------

    def open(self) -> None:
        """Hand the request to the control machine."""
        self.world.tell(RequestArrived(self.request))

    def dispatch(self, action: Dispatch) -> None:
        """Forward to the worker."""
        self.attempt = action.attempt
        self.exchange = Exchange(self, action)
        self.world.connect(self.exchange)

    def refuse(self, action: Refuse) -> None:
        """Answer with an error: over. Control may have given up a worker that is gone before this gateway noticed."""
        self._drop_exchange()
        self._end(Outcome.REFUSED, action.reason, NO_TOKENS)

    # -- what the worker's side reports, after the network's delay ----------------------------------------------

    def first_byte(self, exchange: Exchange) -> None:
        """The worker's first token came; a streaming client gets it at once."""
        if exchange is self.exchange and self.arrival.stream:
            self._send_first_byte()

    def finished(self, exchange: Exchange) -> None:
        """The worker's answer is complete."""
        if exchange is not self.exchange:
            return
        self._send_first_byte()
        if self.outcome is None:  # else control died of the news
            self._finish(Outcome.OK, None, exchange.tokens(), exchange.phases)

    def rejected(self, exchange: Exchange, reason: Reason) -> None:
        """The worker refused it with a proper error, which the client gets."""
        if exchange is self.exchange:
            self._finish(Outcome.REJECTED, reason, NO_TOKENS, NO_PHASES)

    def failed(self, exchange: Exchange, reason: Reason) -> None:
        """The attempt came to nothing: unreachable, dead or overloaded. Another may try while no byte was sent."""
        if exchange is not self.exchange:
            return
        if self.first_byte_ns:
            self._finish(Outcome.FAILED, reason, exchange.tokens(), exchange.phases)
            return
        exchange.closed = True
        self.exchange = None
        self.world.tell(DispatchFailed(self.request.request_id, exchange.dispatch.replica_id, reason, "simulated"))

    # -- what the client and the machine below it do ------------------------------------------------------------

    def hang_up(self) -> None:
        """The client goes."""
        if self.outcome is not None:
            return
        exchange = self.exchange
        tokens = exchange.tokens() if exchange else NO_TOKENS
        self._finish(Outcome.CANCELLED, Reason.CLIENT_GONE, tokens, exchange.phases if exchange else NO_PHASES)

    def cut(self) -> None:
        """The control process died under it."""
        if self.outcome is not None:
            return
        self._drop_exchange()
        self._end(Outcome.FAILED, Reason.CONTROL_RESTARTED, NO_TOKENS)

    def _send_first_byte(self) -> None:
        if not self.first_byte_ns:
            self.first_byte_ns = self.world.now_ns
            self.world.tell(FirstByteSent(self.request.request_id))

    def _finish(self, outcome: Outcome, reason: Reason | None, tokens: TokenCounts, phases: PhaseTimes) -> None:
        self._drop_exchange()
        self._end(outcome, reason, tokens)
        self.world.tell(RequestFinished(self.request.request_id, outcome, reason, tokens, phases))

    def _drop_exchange(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not exchange.closed:
            exchange.closed = True
            if exchange.worker is not None:
                exchange.worker.hang_up(exchange)

    def _end(self, outcome: Outcome, reason: Reason | None, tokens: TokenCounts) -> None:
        assert self.outcome is None, f"{self.request.request_id} ended twice: {self.outcome}, then {outcome}"
        self.outcome, self.reason, self.finished_tokens = outcome, reason, tokens
        self.ended_ns = self.world.now_ns
        self.world.ended(self)


def request_of(arrival: Arrival, *, request_id: str, key_id: str, deadline_ns: int) -> Request:
    """The request as the gateway would describe it to the router."""
    return Request(
        request_id=request_id,
        key_id=key_id,
        model=arrival.model,
        endpoint=Endpoint.CHAT,
        prompt_tokens_estimate=arrival.prompt_tokens,
        max_tokens=arrival.max_tokens,
        deadline_ns=deadline_ns,
        stream=arrival.stream,
        prefix_hashes=router_hashes(arrival),
    )
