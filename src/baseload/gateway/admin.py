"""Administration over HTTP, for the command line and scripts: /admin/v1/…, with an admin key.

    GET    status                     ControlStatus
    GET    models                     {"models": [ModelSpec, …]}
    POST   models                     ModelSpec → 201
    PUT    models/NAME                ModelSpec → 200
    DELETE models/NAME                → 200 {"removed": NAME}
    GET    keys                       {"keys": [Key without its hash, …]}
    POST   keys                       {"name", "is_admin", "models", "limits", "tier"} → 201 {"key", "secret"}, once
    DELETE keys/KEY_ID                → 200 {"revoked": KEY_ID}
    GET    usage?from_day=&to_day=    {"usage": [UsageRow, …]}
    GET    events?after_seq=&limit=&kind=&model=    {"events": [JournalRow, …]}
    POST   shutdown                   {"grace_s": 30} → 202

What changes something is answered once it is on stable storage.
"""

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import parse_qs, unquote

import msgspec

from baseload.core.ports import Control
from baseload.domain.errors import BaseloadError, Reason, Refusal
from baseload.domain.events import KeyCreated, KeyRevoked, ModelPut, ModelRemoved, ShutdownAsked
from baseload.domain.model import ModelSpec
from baseload.domain.tenant import KeyLimits, ShownKey
from baseload.domain.units import seconds
from baseload.domain.work import Tier
from baseload.gateway.keys import make_key
from baseload.wire.settings import wrong_field

PREFIX = "/admin/v1/"
MOST_EVENTS = 10_000
LONGEST_GRACE_S = 86_400.0
MOST_OF_A_LIMIT = 10**12
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")

PrepareModel = Callable[[ModelSpec], Awaitable[ModelSpec]]
"""Checks that a model can be served and fills in what its files say; raises `BaseloadError`."""


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST keys."""

    name: str
    is_admin: bool = False
    models: tuple[str, ...] = ()
    limits: KeyLimits = KeyLimits()
    tier: Tier = Tier.DEFAULT


class ShutdownOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST shutdown: running requests have so long to finish."""

    grace_s: float = 30.0


class Answer(msgspec.Struct, frozen=True):
    """A status and the value to encode."""

    status: int
    body: object


class Administration:
    """Answers what stands in this module's docstring. The caller has authenticated the admin key."""

    def __init__(self, control: Control, *, prepare_model: PrepareModel | None = None) -> None:
        self._control = control
        self._prepare_model = prepare_model
        self._routes: dict[tuple[str, str], Callable[[str, str, bytes], Awaitable[Answer]]] = {
            ("GET", "status"): self._status,
            ("GET", "models"): self._models,
            ("POST", "models"): self._put_model,
            ("PUT", "models/"): self._put_model,
            ("DELETE", "models/"): self._remove_model,
            ("GET", "keys"): self._keys,
            ("POST", "keys"): self._create_key,
            ("DELETE", "keys/"): self._revoke_key,
            ("GET", "usage"): self._usage,
            ("GET", "events"): self._events,
            ("POST", "shutdown"): self._shutdown,
        }

    def methods(self, path: str) -> list[str]:
        """The methods this path knows; none where it does not exist."""
        route, _ = _split(path)
        return [method for method, known in self._routes if known == route]

    async def answer(self, method: str, path: str, query: str, body: bytes) -> Answer:
        """Do it; raises `Refusal`. `path` is below /admin/v1/, and `methods` knows the method."""
        route, name = _split(path)
        return await self._routes[method, route](name, query, body)

    async def _status(self, name: str, query: str, body: bytes) -> Answer:
        return Answer(200, self._control.status())

    async def _models(self, name: str, query: str, body: bytes) -> Answer:
        return Answer(200, {"models": list(self._control.models())})

    async def _put_model(self, name: str, query: str, body: bytes) -> Answer:
        spec = _decode(body, ModelSpec)
        if name and spec.name != name:
            raise Refusal(Reason.BAD_REQUEST, f"The path names '{name}', the body '{spec.name}'.", param="name")
        wrong = wrong_field(spec)
        if wrong is not None:
            raise Refusal(Reason.BAD_REQUEST, f"'{wrong[0]}' must be {wrong[1]}.", param=wrong[0])
        if self._prepare_model is not None:
            try:
                spec = await self._prepare_model(spec)
            except Refusal:
                raise
            except BaseloadError as error:
                raise Refusal(Reason.BAD_REQUEST, error.message, hint=error.hint, param="source") from error
        is_new = self._control.model(spec.name) is None
        await self._control.acknowledge(ModelPut(spec))
        return Answer(201 if is_new else 200, spec)

    async def _remove_model(self, name: str, query: str, body: bytes) -> Answer:
        if self._control.model(name) is None:
            raise Refusal(Reason.UNKNOWN_MODEL, f"There is no model '{name}'.")
        await self._control.acknowledge(ModelRemoved(name))
        return Answer(200, {"removed": name})

    async def _keys(self, name: str, query: str, body: bytes) -> Answer:
        keys = self._control.keys()
        return Answer(200, {"keys": [ShownKey.of(key) for key in keys]})

    async def _create_key(self, name: str, query: str, body: bytes) -> Answer:
        asked = _decode(body, NewKey)
        limits = asked.limits
        if not asked.name.strip() or len(asked.name) > 128:
            raise Refusal(Reason.BAD_REQUEST, "'name' must have 1 to 128 characters.", param="name")
        if not asked.name.isprintable():
            raise Refusal(Reason.BAD_REQUEST, "'name' must not hold control characters.", param="name")
        counts = (limits.requests_per_minute, limits.tokens_per_minute, limits.max_in_flight)
        if not 0 <= min(counts) <= max(counts) <= MOST_OF_A_LIMIT:
            text = f"A limit must be between 0 (none) and {MOST_OF_A_LIMIT}."
            raise Refusal(Reason.BAD_REQUEST, text, param="limits")
        key, secret = make_key(
            asked.name,
            now_ns=self._control.now_ns(),
            is_admin=asked.is_admin,
            models=asked.models,
            limits=limits,
            tier=asked.tier,
        )
        await self._control.acknowledge(KeyCreated(key))
        return Answer(201, {"key": ShownKey.of(key), "secret": secret})

    async def _revoke_key(self, name: str, query: str, body: bytes) -> Answer:
        keys = self._control.keys()
        if not any(key.key_id == name for key in keys):
            raise Refusal(Reason.BAD_REQUEST, f"There is no key '{name}'.", param="key_id")
        if not any(key.is_admin and key.key_id != name for key in keys):
            hint = "Create another admin key first."
            raise Refusal(Reason.BAD_REQUEST, "The last admin key cannot be revoked.", hint=hint, param="key_id")
        await self._control.acknowledge(KeyRevoked(name))
        return Answer(200, {"revoked": name})

    async def _usage(self, name: str, query: str, body: bytes) -> Answer:
        asked = _query(query, ("from_day", "to_day"))
        for param, day in asked.items():
            if day and not _DAY.fullmatch(day):
                raise Refusal(Reason.BAD_REQUEST, f"'{param}' must be a day like 2026-11-20.", param=param)
        rows = await self._control.usage(from_day=asked["from_day"], to_day=asked["to_day"])
        return Answer(200, {"usage": rows})

    async def _events(self, name: str, query: str, body: bytes) -> Answer:
        asked = _query(query, ("after_seq", "limit", "kind", "model"))
        rows = await self._control.events(
            after_seq=_integer("after_seq", asked["after_seq"] or "0", 0, 2**63 - 1),
            limit=_integer("limit", asked["limit"] or "100", 1, MOST_EVENTS),
            kind=asked["kind"],
            model=asked["model"],
        )
        return Answer(200, {"events": rows})

    async def _shutdown(self, name: str, query: str, body: bytes) -> Answer:
        order = _decode(body or b"{}", ShutdownOrder)
        if not 0 <= order.grace_s <= LONGEST_GRACE_S:
            raise Refusal(Reason.BAD_REQUEST, "'grace_s' must be between 0 and 86400.", param="grace_s")
        await self._control.acknowledge(ShutdownAsked(seconds(order.grace_s)))
        return Answer(202, {"shutting_down": True, "grace_s": order.grace_s})


def _split(path: str) -> tuple[str, str]:
    """ "models/a%2Fb" → ("models/", "a/b"); "models" → ("models", "")."""
    route, slash, name = path.partition("/")
    return (route + slash, unquote(name)) if name else (path, "")


_T = TypeVar("_T")


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(Reason.BAD_REQUEST, f"The body is wrong: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(Reason.BAD_JSON, f"The body is not valid JSON: {error}.") from None


def _query(query: str, names: tuple[str, ...]) -> dict[str, str]:
    given = parse_qs(query, keep_blank_values=True)
    for name in given:
        if name not in names:
            raise Refusal(Reason.BAD_REQUEST, f"'{name}' is not known here; {', '.join(names)} are.", param=name)
    return {name: given.get(name, [""])[-1] for name in names}


def _integer(param: str, text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise Refusal(Reason.BAD_REQUEST, f"'{param}' must be an integer between {least} and {most}.", param=param)
    return int(text)
