"""What an answer is known by: an id in every answer's headers, and the same in the log where it is a refusal."""

import logging
import os
import re
from collections.abc import Callable
from time import monotonic

_log = logging.getLogger("baseload.net")

_THEIRS = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DRAWN = 256  # ids for which randomness is drawn at once
LINES_PER_S = 20  # of refusals in the log; beyond, only their number: nobody fills a disk by being refused
_LONGEST_PATH = 100


class RequestIds:
    """Ids that nobody can guess and no restart repeats: 96 random bits."""

    __slots__ = ("_random",)

    def __init__(self) -> None:
        self._random = ""

    def new(self) -> str:
        """ "req_" and 24 hex digits."""
        if not self._random:
            self._random = os.urandom(12 * _DRAWN).hex()
        digits, self._random = self._random[-24:], self._random[:-24]
        return f"req_{digits}"


def id_lines(request_id: str, headers: dict[str, str]) -> str:
    """As header lines: a client's own x-request-id comes back to it; ours, that of ledger and log, beside it."""
    theirs = headers.get("x-request-id")
    if theirs is not None and _THEIRS.fullmatch(theirs):
        return f"x-request-id: {theirs}\r\nx-baseload-request-id: {request_id}\r\n"
    return f"x-request-id: {request_id}\r\n"


class RefusalLog:
    """A line for each request that was refused before it got as far as the ledger, at most so many a second."""

    __slots__ = ("_left", "_now_s", "_since_s", "_unsaid")

    def __init__(self, *, now_s: Callable[[], float] = monotonic) -> None:
        self._now_s = now_s
        self._since_s = float("-inf")
        self._left = 0
        self._unsaid = 0

    def note(self, request_id: str, status: int, reason: str, what: str) -> None:
        """`what` is the route, or why the request could not be read; never anything of a body or a secret."""
        now_s = self._now_s()
        if now_s - self._since_s >= 1.0:
            if self._unsaid:
                _log.info("%d more requests were refused meanwhile", self._unsaid)
            self._since_s, self._left, self._unsaid = now_s, LINES_PER_S, 0
        if self._left:
            self._left -= 1
            _log.info("refused %s: %d %s, %s", request_id, status, reason, what)
        else:
            self._unsaid += 1


def route_words(method: str, path: str) -> str:
    """A route as it may stand in a log: short, and without anything that is not plain ASCII."""
    return f"{method} {ascii(path[:_LONGEST_PATH])[1:-1]}"
