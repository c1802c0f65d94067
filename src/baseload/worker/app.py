"""The worker's routes. Everything here runs on the event loop; the engine has its own thread."""

import asyncio
import itertools
import os
import secrets
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

import msgspec

from baseload.domain.errors import Reason, Refusal
from baseload.domain.fleet import WorkerSample
from baseload.domain.work import Tier
from baseload.engine.jobs import Delta, Ended, Failed, Job, Output
from baseload.engine.loop import EngineLoop
from baseload.net.server import Exchange
from baseload.wire.openai import (
    TIER_HEADER,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    parse_chat,
    parse_completion,
)
from baseload.wire.openai_answers import model_list
from baseload.wire.openai_errors import JSON, error_body, method_not_allowed_body
from baseload.wire.prometheus import CONTENT_TYPE
from baseload.worker.answers import Answer
from baseload.worker.metrics import Metrics
from baseload.worker.prepare import Served, chat_tokens, prepare, tool_form

_INLINE_BYTES = 32 << 10  # a larger body is prepared in a thread, so that others are not held up

_TIERS = tuple(tier.value for tier in Tier)
_Part = TypeVar("_Part")


class _TokenizeRequest(msgspec.Struct):
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True


class WorkerApp:
    """Requests in, answers out. `open` gives it the engine; `draining` makes it refuse what is new."""

    def __init__(self, served: Served, *, loop: asyncio.AbstractEventLoop, block_tokens: int) -> None:
        self.served = served
        self.draining = False
        self.metrics = Metrics()
        self._loop = loop
        self._block_tokens = block_tokens
        self._created = int(time.time())
        self._answers: dict[str, Answer] = {}  # by the engine's request id; bounded by the engine's capacity
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._numbers = itertools.count(1)
        self._engine: EngineLoop | None = None
        self._gets: dict[str, Callable[[Exchange], None]] = {
            "/health": self._health,
            "/v1/models": self._models,
            "/metrics": self._metrics,
            "/stats": self._stats,
        }
        self._posts: dict[str, Callable[[Exchange], None]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/tokenize": self._tokenize,
        }

    def open(self, engine: EngineLoop) -> None:
        """Take requests from now on."""
        self._engine = engine

    def emit(self, outputs: list[Output]) -> None:
        """Called by the engine's thread once per step."""
        self._loop.call_soon_threadsafe(self._take, outputs)

    def handle(self, exchange: Exchange) -> None:
        """The server's handler."""
        routes = self._posts if exchange.method == "POST" else self._gets
        route = routes.get(exchange.path)
        if route is None and exchange.path in {**self._gets, **self._posts}:
            allowed = "POST" if exchange.path in self._posts else "GET"
            body = method_not_allowed_body(exchange.method, exchange.path, allowed)
            exchange.respond(405, body, headers=[("allow", allowed)])
            return
        if route is None:
            message = f"{exchange.method} {exchange.path} is not served here."
            _refuse(exchange, Refusal(Reason.UNKNOWN_ROUTE, message))
            return
        try:
            route(exchange)
        except Refusal as refusal:
            self._refused(exchange, refusal)

    @property
    def engine(self) -> EngineLoop:
        """The engine; `open` was called."""
        assert self._engine is not None
        return self._engine

    # -- small routes ---------------------------------------------------------------------------------------------

    def _health(self, exchange: Exchange) -> None:
        served = self.served
        body = {"status": "ok", "model": served.name, "replica_id": served.replica_id, "pid": os.getpid()}
        if self.draining:
            body["status"] = "draining"
        exchange.respond(503 if self.draining else 200, msgspec.json.encode(body))

    def _models(self, exchange: Exchange) -> None:
        exchange.respond(200, model_list([(self.served.name, self._created, self.served.max_context)]))

    def _metrics(self, exchange: Exchange) -> None:
        engine = self.engine
        page = self.metrics.render(
            model=self.served.name,
            running=engine.running,
            waiting=engine.waiting,
            kv_usage=engine.kv_usage,
            totals=engine.totals,
            block_tokens=self._block_tokens,
        )
        exchange.respond(200, page, content_type=CONTENT_TYPE)

    def _stats(self, exchange: Exchange) -> None:
        engine = self.engine
        totals = engine.totals
        sample = WorkerSample(
            engine.running, engine.waiting, engine.kv_usage, totals.prompt_tokens, totals.generated_tokens
        )
        exchange.respond(200, msgspec.json.encode(msgspec.structs.asdict(sample)))

    def _tokenize(self, exchange: Exchange) -> None:
        try:
            request = msgspec.json.decode(exchange.body, type=_TokenizeRequest)
        except msgspec.ValidationError as error:
            raise Refusal(Reason.BAD_REQUEST, str(error)) from error
        except msgspec.DecodeError as error:
            raise Refusal(Reason.BAD_JSON, f"The body is not valid JSON: {error}.") from error
        if request.messages is not None:
            ids = chat_tokens(request.messages, self.served)
        elif request.prompt is not None:
            ids = self.served.tokenizer.encode(request.prompt, special=request.add_special_tokens)
        else:
            raise Refusal(Reason.BAD_REQUEST, "Give 'prompt' or 'messages'.", param="prompt")
        body = {"count": len(ids), "max_model_len": self.served.max_context, "tokens": ids}
        exchange.respond(200, msgspec.json.encode(body))

    # -- completions ------------------------------------------------------------------------------------------------

    def _chat(self, exchange: Exchange) -> None:
        self._begin(exchange, parse_chat(exchange.body))

    def _completion(self, exchange: Exchange) -> None:
        self._begin(exchange, parse_completion(exchange.body))

    def _begin(self, exchange: Exchange, request: ChatRequest | CompletionRequest) -> None:
        arrived_ns = time.monotonic_ns()
        if self.draining:
            raise Refusal(Reason.SHUTTING_DOWN, "This worker is ending.", hint="Try again.")
        if request.model != self.served.name:
            message = f"The model '{request.model}' is not served here; '{self.served.name}' is."
            raise Refusal(Reason.UNKNOWN_MODEL, message, param="model")
        request_id = str(next(self._numbers))
        if len(exchange.body) <= _INLINE_BYTES and not _has_grammar(request):
            job = prepare(
                request,
                served=self.served,
                request_id=request_id,
                seed=secrets.randbits(63),
                tier=_tier(exchange, request),
            )
            self._submit(exchange, request, job, arrived_ns)
            return
        task = self._loop.create_task(self._prepare_aside(exchange, request, request_id, arrived_ns))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _prepare_aside(
        self, exchange: Exchange, request: ChatRequest | CompletionRequest, request_id: str, arrived_ns: int
    ) -> None:
        try:
            job = await asyncio.to_thread(
                prepare,
                request,
                served=self.served,
                request_id=request_id,
                seed=secrets.randbits(63),
                tier=_tier(exchange, request),
            )
            if not exchange.closed:
                self._submit(exchange, request, job, arrived_ns)
        except Refusal as refusal:
            self._refused(exchange, refusal)
        except Exception as error:  # a defect: report it, and answer the client all the same
            self._loop.call_exception_handler({"message": "preparing a request failed", "exception": error})
            self._refused(exchange, Refusal(Reason.WORKER_ERROR, "The worker failed on this request."))

    def _submit(
        self, exchange: Exchange, request: ChatRequest | CompletionRequest, job: Job, arrived_ns: int
    ) -> None:
        self.engine.submit(job)
        answer_id = exchange.headers.get("x-request-id") or uuid.uuid4().hex
        self._answers[job.request_id] = Answer(
            exchange,
            request,
            answer_id=answer_id,
            tokenizer=self.served.tokenizer,
            width=job.width,
            arrived_ns=arrived_ns,
            tier=job.tier if request.service_tier or TIER_HEADER in exchange.headers else None,
            tool_form=tool_form(self.served) if isinstance(request, ChatRequest) and request.offered else None,
        )
        exchange.on_disconnect = lambda: self._client_gone(job.request_id)

    def _client_gone(self, request_id: str) -> None:
        if self._answers.pop(request_id, None) is not None:
            self.metrics.finished["abort"] += 1
            self.engine.cancel(request_id)

    def _take(self, outputs: list[Output]) -> None:
        """One step's outputs, on the event loop. Those of requests whose client is gone are dropped."""
        deltas: dict[str, list[Delta]] = {}
        ends: list[Ended | Failed] = []
        for output in outputs:
            if isinstance(output, Delta):
                deltas.setdefault(output.request_id, []).append(output)
            else:
                ends.append(output)
        for request_id, group in deltas.items():
            self._guarded(request_id, self._extend, group)
        for end in ends:
            self._guarded(end.request_id, self._finish, end)
            self._answers.pop(end.request_id, None)

    def _guarded(self, request_id: str, act: Callable[[Answer, _Part], None], part: _Part) -> None:
        """A defect while answering one client is reported and cuts that client off, not those after it."""
        answer = self._answers.get(request_id)
        if answer is None:
            return
        try:
            act(answer, part)
        except Exception as error:
            self._loop.call_exception_handler({"message": "answering a request failed", "exception": error})
            self._client_gone(request_id)
            answer.exchange.abort()

    def _extend(self, answer: Answer, deltas: list[Delta]) -> None:
        if not answer.first_ns:
            self.metrics.ttft.observe((time.monotonic_ns() - answer.arrived_ns) / 1e9)
        answer.take(deltas)

    def _finish(self, answer: Answer, end: Ended | Failed) -> None:
        match end:
            case Ended():
                self._count_end(answer, end)
                answer.end(end.tokens, end.phases)
            case Failed():
                self.metrics.finished["error"] += 1
                answer.fail(end.refusal)

    def _count_end(self, answer: Answer, ended: Ended) -> None:
        now = time.monotonic_ns()
        self.metrics.e2e.observe((now - answer.arrived_ns) / 1e9)
        after_first = ended.tokens.completion - len(answer.finishes)
        if after_first > 0:
            self.metrics.tpot.observe((now - answer.first_ns) / 1e9 * len(answer.finishes) / after_first)
        for how in answer.finishes:
            assert how is not None
            self.metrics.finished[how] += 1

    def _refused(self, exchange: Exchange, refusal: Refusal) -> None:
        self.metrics.finished["refused"] += 1
        _refuse(exchange, refusal)


def _refuse(exchange: Exchange, refusal: Refusal) -> None:
    status, headers, body = error_body(refusal)
    exchange.respond(status, body, content_type=JSON, headers=headers)


def _tier(exchange: Exchange, request: ChatRequest | CompletionRequest) -> Tier:
    """The class of service: as asked, else as the gateway says that the key has it, else the default."""
    said = exchange.headers.get(TIER_HEADER)
    if said is not None and said not in _TIERS:
        raise Refusal(Reason.BAD_REQUEST, f"{TIER_HEADER} must be one of {', '.join(_TIERS)}.")
    return request.tier or Tier(said or Tier.DEFAULT)


def _has_grammar(request: ChatRequest | CompletionRequest) -> bool:
    return (
        (isinstance(request, ChatRequest) and bool(request.demanded))
        or request.response_format is not None
        or request.structured_outputs is not None
        or request.guided_json is not msgspec.UNSET
        or any((request.guided_regex, request.guided_grammar, request.guided_choice))
    )
