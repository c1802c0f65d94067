"""Asking workers how they are: /health and /stats, and which answers are worth an event."""

import asyncio
from dataclasses import dataclass

import msgspec

from baseload.domain.errors import NetError
from baseload.domain.fleet import WorkerSample
from baseload.net.client import Client

_TIMEOUT_S = 5.0
_RETRY_S = 0.05
_QUIET_S = 15.0  # an unchanged sample is told so often, as a sign of life
_COUNTS_S = 2.0  # one that differs only in counters or slightly
_KV_STEP = 0.02


class Probe:
    """Health and figures of workers over HTTP."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def is_healthy(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> bool:
        """Whether it answers /health with 200."""
        try:
            answer = await self._client.request("GET", f"{url}/health", timeout_s=timeout_s)
        except NetError:
            return False
        return answer.status == 200

    async def until_healthy(self, url: str) -> None:
        """Return once it is healthy. The machine's start timeout bounds the wait, by ending the worker."""
        while not await self.is_healthy(url):  # noqa: ASYNC110 - it is another process: nothing here can be awaited
            await asyncio.sleep(_RETRY_S)

    async def sample(self, url: str) -> WorkerSample | None:
        """Its figures; None when it does not answer, or not in a way we understand."""
        try:
            answer = await self._client.request("GET", f"{url}/stats", timeout_s=_TIMEOUT_S)
        except NetError:
            return None
        return read_sample(answer.body) if answer.status == 200 else None


def read_sample(body: bytes) -> WorkerSample | None:
    """A sample from JSON: an object of its fields (others are passed over), or an array in their order."""
    try:
        found = msgspec.json.decode(body)
        if isinstance(found, dict):
            found = [found.get(name, 0) for name in WorkerSample.__struct_fields__]
        return msgspec.convert(found, WorkerSample, strict=False)
    except (msgspec.MsgspecError, ValueError):
        return None


@dataclass(slots=True)
class Telling:
    """Which of one worker's samples are told: those that may change a decision, the others now and then."""

    last: WorkerSample | None = None
    at_s: float = 0.0
    is_due: bool = False

    def wants(self, sample: WorkerSample, now_s: float) -> bool:
        """Whether to tell this one; it then is the last told."""
        last, quiet_s = self.last, now_s - self.at_s
        wanted = (
            last is None
            or self.is_due
            or quiet_s >= _QUIET_S
            or (sample.running, sample.waiting) != (last.running, last.waiting)
            or abs(sample.kv_usage - last.kv_usage) >= _KV_STEP
            or (sample != last and quiet_s >= _COUNTS_S)
        )
        if wanted:
            self.last, self.at_s, self.is_due = sample, now_s, False
        return wanted
