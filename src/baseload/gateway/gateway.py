"""The gateway: HTTP requests to events, and the answers back. One check in front of every route.

    gateway = Gateway(control, client, extra_routes=[dashboard])
    server = await serve(gateway.handle, host=host, port=port)

/v1/chat/completions and /v1/completions are the hot route: no task, no future, no framework. Administration runs
as tasks. Anything else is asked of `extra_routes`, in order.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol
from urllib.parse import unquote

import msgspec

from baseload.core.ports import Control
from baseload.domain.errors import JournalError, Reason, Refusal, SettingsError
from baseload.domain.model import ModelSpec
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.domain.work import Endpoint, Request, Tier
from baseload.gateway.admin import PREFIX, Administration, PrepareModel
from baseload.gateway.forward import Forward
from baseload.gateway.intake import take_in
from baseload.gateway.metrics import Metrics, exposition
from baseload.net.client import Client
from baseload.net.request_ids import RefusalLog, route_words
from baseload.net.server import Exchange
from baseload.wire.bearer import authenticate, authenticate_admin
from baseload.wire.openai_answers import model_card, model_list
from baseload.wire.openai_errors import error_body, internal_error_body, method_not_allowed_body
from baseload.wire.prometheus import CONTENT_TYPE

MOST_ADMIN_TASKS = 64
DEADLINE_HEADER = "x-baseload-deadline-ms"  # the client's own bound on the wait for the first byte
_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint}


SecretLine = Callable[[str], str]
"""The header line with the secret of this name, for a worker that asks for one; raises `BaseloadError`."""


class Mount(Protocol):
    """Routes that the composition root adds, such as the dashboard. They authenticate for themselves."""

    def takes(self, path: str) -> bool:
        """Whether this path is one of theirs."""

    def handle(self, exchange: Exchange) -> None:
        """Answer the request."""


class Gateway:
    """Answers every exchange of the server."""

    def __init__(
        self,
        control: Control,
        client: Client,
        *,
        extra_routes: Sequence[Mount] = (),
        prepare_model: PrepareModel | None = None,
        first_byte_timeout_s: float = 600.0,
        idle_timeout_s: float = 120.0,
        open_metrics: bool = False,
        secret_line: SecretLine | None = None,
    ) -> None:
        self.control = control
        self.client = client
        self.metrics = Metrics()
        self.in_flight = 0
        self.is_leaving = False  # set before the server is closed: whoever is still here is told why
        self.first_byte_timeout_s = first_byte_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.secret_line = secret_line or _no_secrets
        self._open_metrics = open_metrics  # whether /metrics, which names every model, needs no admin key
        self._extra_routes = tuple(extra_routes)
        self._administration = Administration(control, prepare_model=prepare_model)
        self._started_s = control.now_ns() // NS_PER_S
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._refusals = RefusalLog()
        self._unsent: list[Callable[[], None]] = []  # ends of answers that wait for the journal

    def handle(self, exchange: Exchange) -> None:
        """Answer one request; called by the server once it is complete."""
        endpoint = _ENDPOINTS.get(exchange.path)
        try:
            if endpoint is not None and exchange.method == "POST":
                self._complete(endpoint, exchange)
            else:
                self._other(exchange)
        except Refusal as refusal:
            self._refuse(exchange, refusal)

    def after_settling(self, send: Callable[[], None]) -> None:
        """Call `send` once everything told so far is settled: one write for all answers of this turn of the loop."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._settle)
        self._unsent.append(send)

    def _settle(self) -> None:
        unsent, self._unsent = self._unsent, []
        self.control.settle()
        for send in unsent:
            try:
                send()
            except Exception as error:  # a defect with one answer must not hold back the others
                context = {"message": "an answer could not be sent", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    async def close(self) -> None:
        """End administration that is still under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- the hot route ----------------------------------------------------------------------------------------------

    def _complete(self, endpoint: Endpoint, exchange: Exchange) -> None:
        headers, control = exchange.headers, self.control
        key = authenticate(control, headers)
        intake = take_in(endpoint, exchange.body)
        self._model(intake.model, key)
        tier = key.tier if intake.tier is None else _allowed_tier(intake.tier, key)
        request = Request(
            request_id=exchange.request_id,
            key_id=key.key_id,
            model=intake.model,
            endpoint=endpoint,
            prompt_tokens_estimate=intake.prompt_tokens_estimate,
            max_tokens=intake.max_tokens,
            deadline_ns=self._deadline_ns(headers) if DEADLINE_HEADER in headers else 0,
            stream=intake.stream,
            n=intake.n,
            prefix_hashes=intake.prefix_hashes,
            tier=tier,
        )
        limits, lines = key.limits, ""
        if limits.requests_per_minute or limits.tokens_per_minute:
            lines = self._limits_left(key, intake.prompt_tokens_estimate + intake.max_tokens)
        Forward(self, exchange, request, intake.body, intake.withhold_usage, lines, perf_counter()).open()

    def _model(self, name: str, key: Key) -> ModelSpec:
        spec = self.control.model(name)
        if spec is None or (key.models and name not in key.models):
            # The same words for both: a key limited to some models cannot find out which others there are.
            known = ", ".join([model.name for model in self._models_of(key)][:10]) or "none yet"
            text = f"The model '{name}' does not exist, or this key may not use it."
            raise Refusal(Reason.UNKNOWN_MODEL, text, hint=f"Models for this key: {known}.", param="model")
        return spec

    def _limits_left(self, key: Key, tokens: int) -> str:
        """OpenAI's x-ratelimit headers, as they are once this request has taken its share."""
        limits, left = key.limits, self.control.allowance(key.key_id)
        lines = ""
        if limits.requests_per_minute:
            lines = (
                f"x-ratelimit-limit-requests: {limits.requests_per_minute}\r\n"
                f"x-ratelimit-remaining-requests: {max(0, left.requests - 1)}\r\n"
                f"x-ratelimit-reset-requests: {left.requests_reset_ns // NS_PER_MS}ms\r\n"
            )
        if limits.tokens_per_minute:
            lines += (
                f"x-ratelimit-limit-tokens: {limits.tokens_per_minute}\r\n"
                f"x-ratelimit-remaining-tokens: {max(0, left.tokens - tokens)}\r\n"
                f"x-ratelimit-reset-tokens: {left.tokens_reset_ns // NS_PER_MS}ms\r\n"
            )
        return lines

    def _deadline_ns(self, headers: dict[str, str]) -> int:
        text = headers[DEADLINE_HEADER]
        if not text.isdecimal() or not 1 <= int(text) <= 86_400_000:
            raise Refusal(Reason.BAD_REQUEST, f"{DEADLINE_HEADER} must be milliseconds from 1 to 86400000.")
        return self.control.now_ns() + int(text) * NS_PER_MS

    # -- everything else --------------------------------------------------------------------------------------------

    def _other(self, exchange: Exchange) -> None:
        path = exchange.path
        if path.startswith(PREFIX):
            self._administer(exchange, path[len(PREFIX) :])
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            if self._allows(exchange, "GET"):
                self._show_models(exchange, unquote(path[len("/v1/models/") :]))
        elif path == "/health":
            if self._allows(exchange, "GET"):
                exchange.respond(200, b'{"status":"ok"}', headers=[("cache-control", "no-store")])
        elif path == "/metrics":
            if self._allows(exchange, "GET"):
                if not self._open_metrics:
                    authenticate_admin(self.control, exchange.headers)
                figures = exposition(self.metrics, self.control.status(), in_flight=self.in_flight)
                exchange.respond(200, figures, content_type=CONTENT_TYPE)
        elif path in _ENDPOINTS:
            self._allows(exchange, "POST")
        else:
            for mount in self._extra_routes:
                if mount.takes(path):
                    mount.handle(exchange)
                    return
            text = f"There is nothing at {exchange.method} {path}."
            raise Refusal(Reason.UNKNOWN_ROUTE, text, hint="The API is below /v1; see GET /v1/models.")

    def _show_models(self, exchange: Exchange, name: str) -> None:
        key = authenticate(self.control, exchange.headers)
        if name:
            spec = self._model(name, key)
            body = model_card(spec.name, created=self._started_s, context_tokens=spec.context_tokens)
        else:
            models = self._models_of(key)
            body = model_list([(spec.name, self._started_s, spec.context_tokens) for spec in models])
        exchange.respond(200, body)

    def _models_of(self, key: Key) -> list[ModelSpec]:
        return [spec for spec in self.control.models() if not key.models or spec.name in key.models]

    def _administer(self, exchange: Exchange, path: str) -> None:
        authenticate_admin(self.control, exchange.headers)
        methods = self._administration.methods(path)
        if not methods:
            raise Refusal(Reason.UNKNOWN_ROUTE, f"There is nothing at {PREFIX}{path}.")
        if self._allows(exchange, *methods):
            if len(self._tasks) >= MOST_ADMIN_TASKS:
                raise Refusal(Reason.QUEUE_FULL, f"{MOST_ADMIN_TASKS} administration calls are under way.")
            task = asyncio.get_running_loop().create_task(self._answer_admin(exchange, path))
            self._tasks[task] = None
            task.add_done_callback(self._tasks.pop)

    async def _answer_admin(self, exchange: Exchange, path: str) -> None:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        no_store = [("cache-control", "no-store")]
        try:
            answer = await self._administration.answer(method, path, exchange.query, exchange.body)
            exchange.respond(answer.status, msgspec.json.encode(answer.body), headers=no_store)
        except Refusal as refusal:
            self._refuse(exchange, refusal)
        except JournalError as error:
            self._refuse(exchange, Refusal(Reason.JOURNAL_UNAVAILABLE, error.message, hint=error.hint))
        except Exception as error:
            error.add_note(f"It happened while {exchange.request_id} was answered.")
            exchange.respond(500, internal_error_body())
            raise

    def _allows(self, exchange: Exchange, *methods: str) -> bool:
        """Whether the method is one of these; if not, the exchange is answered with 405."""
        method = exchange.method
        if method in methods or (method == "HEAD" and "GET" in methods):
            return True
        allowed = ", ".join(methods)
        self._note(exchange, 405, "method_not_allowed")
        exchange.respond(405, method_not_allowed_body(method, exchange.path, allowed), headers=[("allow", allowed)])
        return False

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        self.metrics.refused(refusal.reason)
        status, headers, body = error_body(refusal)
        self._note(exchange, status, refusal.reason)
        exchange.respond(status, body, headers=headers)

    def _note(self, exchange: Exchange, status: int, reason: str) -> None:
        self._refusals.note(exchange.request_id, status, reason, route_words(exchange.method, exchange.path))


def _no_secrets(name: str) -> str:
    raise SettingsError(f"There is no secret {name}: this gateway was given none.")


def _allowed_tier(tier: Tier, key: Key) -> Tier:
    """The class of service that was asked for, where the key may have it."""
    if tier.rank > key.tier.rank:
        raise Refusal(
            Reason.FORBIDDEN,
            f"The key '{key.name}' may not ask for service_tier '{tier}'; its class is '{key.tier}'.",
            hint=f"Leave service_tier out, or have a key made with 'baseload keys create NAME --tier {tier}'.",
            param="service_tier",
        )
    return tier
