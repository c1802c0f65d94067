"""The commands' side of the administration and chat API. Synchronous: a command does one thing at a time."""

import http.client
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.errors import BaseloadError, ControlError, SettingsError
from baseload.domain.model import ModelSpec
from baseload.domain.status import ControlStatus
from baseload.domain.tenant import KeyLimits, ShownKey
from baseload.domain.work import Tier

T = TypeVar("T")
TIMEOUT_S = 30.0
CHAT_TIMEOUT_S = 900.0  # a large model may take long to wake


class _Models(msgspec.Struct, frozen=True):
    models: list[ModelSpec]


class _Keys(msgspec.Struct, frozen=True):
    keys: list[ShownKey]


class _Usage(msgspec.Struct, frozen=True):
    usage: list[UsageRow]


class _Events(msgspec.Struct, frozen=True):
    events: list[JournalRow]


class _CreatedKey(msgspec.Struct, frozen=True):
    key: ShownKey
    secret: str


class HttpDesk:
    """A desk on a running control, over its administration API. Needs an admin key."""

    is_running = True

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    async def status(self) -> ControlStatus:
        """Everything at this instant."""
        return self._get("/admin/v1/status", ControlStatus)

    async def models(self) -> Sequence[ModelSpec]:
        """All models."""
        return self._get("/admin/v1/models", _Models).models

    async def put_model(self, spec: ModelSpec) -> None:
        """Add a model, or replace the one of that name. The control process checks its folder."""
        self._call("PUT", f"/admin/v1/models/{quote(spec.name, safe='')}", msgspec.json.encode(spec))

    async def remove_model(self, name: str) -> None:
        """Remove a model."""
        self._call("DELETE", f"/admin/v1/models/{quote(name, safe='')}")

    async def keys(self) -> Sequence[ShownKey]:
        """All keys that are not revoked."""
        return self._get("/admin/v1/keys", _Keys).keys

    async def create_key(
        self, name: str, *, is_admin: bool, models: Sequence[str], limits: KeyLimits, tier: Tier = Tier.DEFAULT
    ) -> tuple[ShownKey, str]:
        """A new key and its secret."""
        wanted = {"name": name, "is_admin": is_admin, "models": list(models), "limits": limits, "tier": tier}
        body = self._call("POST", "/admin/v1/keys", msgspec.json.encode(wanted))
        made = msgspec.json.decode(body, type=_CreatedKey)
        return made.key, made.secret

    async def revoke_key(self, key_id: str) -> None:
        """Revoke a key."""
        self._call("DELETE", f"/admin/v1/keys/{quote(key_id, safe='')}")

    async def usage(self, *, from_day: str = "", to_day: str = "") -> Sequence[UsageRow]:
        """Usage by day, key and model."""
        return self._get("/admin/v1/usage", _Usage, from_day=from_day, to_day=to_day).usage

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> Sequence[JournalRow]:
        """The newest journal records, oldest first."""
        found = self._get("/admin/v1/events", _Events, after_seq=after_seq, limit=limit, kind=kind, model=model)
        return found.events

    def _get(self, path: str, kind: type[T], /, **query: str | int) -> T:
        given = {name: value for name, value in query.items() if value not in ("", 0)}
        body = self._call("GET", f"{path}?{urlencode(given)}" if given else path)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise ControlError(
                f"{self._url} gave an answer that this command does not understand: {error}.",
                hint="Use the same version of baseload on both sides.",
            ) from error

    def _call(self, method: str, path: str, body: bytes = b"") -> bytes:
        response = send(self._url, method, path, key=self._key, body=body, timeout_s=TIMEOUT_S)
        answer = response.read()
        if response.status >= 400:
            raise refused(response.status, answer)
        return answer


def send(
    url: str, method: str, path: str, *, key: str, body: bytes = b"", timeout_s: float
) -> http.client.HTTPResponse:
    """Send one request; gives the response with its body still to be read."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"{url!r} is not an address: {error}.", hint="Check --url or BASELOAD_URL.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SettingsError(f"{url!r} is not an http:// or https:// address.", hint="Check --url or BASELOAD_URL.")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("The key has characters that no key has.", hint="Check --key or BASELOAD_KEY.")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "connection": "close"}
    try:
        connection = kind(host, port, timeout=timeout_s)
        connection.request(method, parts.path.rstrip("/") + path, body=body or None, headers=headers)
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(
            f"Nothing answers at {url}: {error}.", hint="Is it running? Start it with `baseload up`."
        ) from error


def refused(status: int, body: bytes) -> BaseloadError:
    """The error of an answer that is none: its own message where it has one."""
    try:
        message = str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        message = f"The server answered with status {status}."
    if status in (401, 403):
        return ControlError(message, hint="Give an admin key with BASELOAD_KEY=… or --key.")
    return BaseloadError(message)


def stream(url: str, path: str, *, key: str, body: bytes) -> Iterator[dict[str, Any]]:
    """Send a request with `"stream": true`; gives each server-sent chunk as it comes."""
    response = send(url, "POST", path, key=key, body=body, timeout_s=CHAT_TIMEOUT_S)
    if response.status >= 400:
        raise refused(response.status, response.read())
    try:
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            chunk = msgspec.json.decode(data)
            if "error" in chunk:
                raise BaseloadError(f"The answer broke off: {chunk['error'].get('message', 'no reason given')}")
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(f"The connection broke off: {error}.", hint="Ask again.") from error
    finally:
        response.close()
