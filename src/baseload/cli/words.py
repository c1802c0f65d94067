"""Journal records in words a newcomer understands."""

from collections.abc import Callable, Mapping

from baseload.core.ports import JournalRow
from baseload.domain.units import NS_PER_S

Body = Mapping[str, object]


def sentence(row: JournalRow) -> str:
    """One record of the journal as a sentence; unknown kinds show their fields."""
    words = _WORDS.get(row.kind)
    if words is not None:
        return words(row.body)
    return ", ".join(f"{name} {value}" for name, value in row.body.items() if value not in ("", 0, None, [], {}))


def _decision(body: Body) -> str:
    return f"{str(body['what']).replace('_', ' ')}: {body['why']}"


def _request(body: Body) -> str:
    tokens = _fields(body, "tokens")
    took = seconds_between(body, "arrived_ns", "ended_ns")
    counts = f"{tokens.get('prompt', 0)} tokens in, {tokens.get('completion', 0)} out"
    reason = f" ({body['reason']})" if body.get("reason") else ""
    tier = body.get("tier", "default")
    kind = "request" if tier == "default" else f"{tier} request"
    return f"{kind} for {body['model']}: {body['outcome']}{reason} after {took}, {counts}"


def _replica(body: Body) -> str:
    spent = ", ".join(f"{_seconds(body[f'{part}_ns'])} {part}" for part in ("useful", "idle", "cold"))
    return f"replica of {body['model']}: {spent}" + ("; it is gone" if body.get("final") else "")


def _exited(body: Body) -> str:
    detail = f": {body['detail']}" if body.get("detail") else ""
    return f"worker {body['replica_id']} ended with exit code {body['exit_code']}{detail}"


def _finished(body: Body) -> str:
    reason = f" ({body['reason']})" if body.get("reason") else ""
    return f"request {body['request_id']} ended: {body['outcome']}{reason}"


_WORDS: Mapping[str, Callable[[Body], str]] = {
    "decision": _decision,
    "request": _request,
    "replica": _replica,
    "model_put": lambda body: f"model {_fields(body, 'spec').get('name')} was added or changed",
    "model_removed": lambda body: f"model {body['model']} was removed",
    "key_created": lambda body: f"key {_fields(body, 'key').get('name')!r} was created",
    "key_revoked": lambda body: f"key {body['key_id']} was revoked",
    "arrived": lambda body: f"request for {_fields(body, 'request').get('model')} arrived",
    "first_byte": lambda body: f"first byte of {body['request_id']} went to the client",
    "finished": _finished,
    "dispatch_failed": lambda body: f"{body['replica_id']} did not answer {body['request_id']}: {body['reason']}",
    "worker_started": lambda body: f"worker {body['replica_id']} is starting as process {body['pid']}",
    "worker_ready": lambda body: f"worker {body['replica_id']} takes requests",
    "worker_exited": _exited,
    "control_started": lambda body: (
        f"Baseload started (policy {body['policy_version']})"
        if not body.get("offline")
        else "stored state was opened for administration"
    ),
    "shutdown_asked": lambda _: "Baseload was asked to stop",
}


def _fields(body: Body, name: str) -> Mapping[str, object]:
    value = body.get(name)
    return value if isinstance(value, Mapping) else {}


def seconds_between(body: Body, start: str, end: str) -> str:
    """The time between two fields of a record, in seconds."""
    first, last = body.get(start, 0), body.get(end, 0)
    return _seconds(last - first if isinstance(first, int) and isinstance(last, int) else 0)


def _seconds(duration_ns: object) -> str:
    return f"{duration_ns / NS_PER_S:.2f} s" if isinstance(duration_ns, int) else "?"
