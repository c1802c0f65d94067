"""The one mapping from `Reason` to OpenAI's HTTP status, type and code, for gateway and worker alike."""

import msgspec

from baseload.domain.errors import Reason, Refusal
from baseload.domain.units import NS_PER_S

JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"

_INVALID = "invalid_request_error"
_MAPPING: dict[Reason, tuple[int, str, str]] = {
    Reason.BAD_JSON: (400, _INVALID, "invalid_json"),
    Reason.BAD_REQUEST: (400, _INVALID, "invalid_value"),
    Reason.TOO_LARGE: (413, _INVALID, "request_too_large"),
    Reason.CONTEXT_TOO_LONG: (400, _INVALID, "context_length_exceeded"),
    Reason.NO_KEY: (401, _INVALID, "missing_api_key"),
    Reason.WRONG_KEY: (401, _INVALID, "invalid_api_key"),
    Reason.FORBIDDEN: (403, "permission_error", "forbidden"),
    Reason.UNKNOWN_ROUTE: (404, _INVALID, "unknown_url"),
    Reason.UNKNOWN_MODEL: (404, _INVALID, "model_not_found"),
    Reason.RATE_LIMITED: (429, "rate_limit_error", "rate_limit_exceeded"),
    Reason.TOO_MANY_IN_FLIGHT: (429, "rate_limit_error", "too_many_in_flight"),
    Reason.QUEUE_FULL: (503, "overloaded_error", "queue_full"),
    Reason.DEADLINE: (504, "timeout_error", "deadline_exceeded"),
    Reason.MODEL_UNAVAILABLE: (503, "overloaded_error", "model_unavailable"),
    Reason.WORKER_LOST: (502, "server_error", "worker_lost"),
    Reason.WORKER_ERROR: (502, "server_error", "worker_error"),
    Reason.MODEL_REMOVED: (404, _INVALID, "model_removed"),
    Reason.SHUTTING_DOWN: (503, "overloaded_error", "shutting_down"),
    Reason.CONTROL_RESTARTED: (503, "server_error", "control_restarted"),
    Reason.CLIENT_GONE: (499, "client_error", "client_gone"),
    Reason.JOURNAL_UNAVAILABLE: (503, "server_error", "journal_unavailable"),
}
_DEFAULT_RETRY_S = {
    Reason.RATE_LIMITED: 1,
    Reason.TOO_MANY_IN_FLIGHT: 1,
    Reason.QUEUE_FULL: 1,
    Reason.MODEL_UNAVAILABLE: 5,
    Reason.SHUTTING_DOWN: 5,
    Reason.CONTROL_RESTARTED: 1,
    Reason.JOURNAL_UNAVAILABLE: 5,
}


class ErrorDetail(msgspec.Struct, frozen=True):
    """What stands under "error"."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """OpenAI's error body."""

    error: ErrorDetail


def error_body(refusal: Refusal) -> tuple[int, list[tuple[str, str]], bytes]:
    """The refusal as (status, headers, JSON body). 429 and 503 always carry Retry-After, in whole seconds."""
    status, kind, code = _MAPPING[refusal.reason]
    headers: list[tuple[str, str]] = []
    retry_s = -(-refusal.retry_after_ns // NS_PER_S) or _DEFAULT_RETRY_S.get(refusal.reason, 0)
    if retry_s:
        headers.append(("retry-after", str(retry_s)))
    if refusal.reason in (Reason.NO_KEY, Reason.WRONG_KEY):
        headers.append(("www-authenticate", "Bearer"))
    return status, headers, _encode(str(refusal), kind, refusal.param, code)


def error_event(refusal: Refusal) -> bytes:
    """The refusal as a server-sent event, for a stream that has begun. No [DONE] follows it."""
    return b"data: " + error_body(refusal)[2] + b"\n\n"


def method_not_allowed_body(method: str, path: str, allowed: str) -> bytes:
    """The body of a 405."""
    message = f"{method} is not allowed on {path}. Use {allowed}."
    return _encode(message, _INVALID, None, "method_not_allowed")


def internal_error_body() -> bytes:
    """The body of a 500: a defect of ours, of which the client learns nothing more."""
    return _encode("The server failed on this request. Its log says why.", "server_error", None, "internal_error")


def reason_of_code(code: object) -> Reason | None:
    """The reason whose code this is, as read from another server's error body."""
    return _BY_CODE.get(code) if isinstance(code, str) else None


_THE_CLIENTS = (400, 413, 422)  # statuses of an error that another worker would give too
_BY_CODE = {code: reason for reason, (_, _, code) in _MAPPING.items()}


def _encode(message: str, kind: str, param: str | None, code: str) -> bytes:
    return msgspec.json.encode(ErrorEnvelope(ErrorDetail(message, kind, param, code)))


def clients_fault(body: bytes) -> Reason | None:
    """Why the client is at fault, as a worker's error says that came as an event, without a status. None: it is not.

    Our own workers say it by their codes; others put the status there (vLLM).
    """
    try:
        envelope = msgspec.json.decode(body, type=_WorkerError)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    code = None if envelope.error is None else envelope.error.code
    reason = reason_of_code(code)
    if reason is not None:
        return reason if _MAPPING[reason][0] in _THE_CLIENTS else None
    return Reason.BAD_REQUEST if code in _THE_CLIENTS else None


def error_of_worker(body: bytes) -> tuple[Reason, bytes]:
    """A worker's error body as (reason, OpenAI's envelope). One already in that form is kept as it is."""
    try:
        envelope = msgspec.json.decode(body, type=_WorkerError)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Reason.BAD_REQUEST, _encode(body[:1000].decode("utf-8", "replace"), _INVALID, None, "invalid_value")
    if envelope.error is not None:
        return reason_of_code(envelope.error.code) or Reason.BAD_REQUEST, body
    message = envelope.message or body[:1000].decode("utf-8", "replace")
    return Reason.BAD_REQUEST, _encode(message, _INVALID, None, "invalid_value")


class _WorkerErrorDetail(msgspec.Struct, frozen=True):
    code: str | int | None = None


class _WorkerError(msgspec.Struct, frozen=True):
    """OpenAI's envelope, or the flat form of older vLLM."""

    error: _WorkerErrorDetail | None = None
    message: str = ""
