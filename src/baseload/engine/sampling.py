"""From logits to tokens, one row at a time on the host.

Order: grammar mask, logit_bias, penalties (over generated tokens only), then greedy, or temperature, top_k, top_p
(of what top_k left), min_p (relative to the likeliest) and a draw. Tokens equally likely at an edge stay together.
Log-probabilities are the log-softmax of the raw logits, before any of these, as most servers report them.

A row is computed alone, and its one random number is a function of (seed, choice, index of the token): what a
request gets cannot depend on its batch-mates or on any bucket. Rows are handled in numpy because the logits of a
CPU step are host memory already, and for top_k, top_p and argmax it is far faster there than XLA (figures in
docs/decisions/0005-batching-and-worker.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baseload.domain.errors import BaseloadError, Reason
from baseload.domain.rng import Rng
from baseload.domain.sampling import Sampling

_GOLDEN = 0x9E3779B97F4A7C15  # the step of SplitMix64: adding it i times is the generator's i-th state
_CHUNK = 256
_COLDEST = 1e-5  # below this temperature sampling is greedy

Row = NDArray[np.float32]


class SamplingFailed(BaseloadError):
    """A row gives no token: its logits are no numbers, or its grammar cannot be followed. Only its request fails.

    `reason` tells whose fault it is: BAD_REQUEST, with `param` the field at fault, where it is the client's.
    """

    def __init__(
        self, message: str, *, hint: str = "", reason: Reason = Reason.WORKER_ERROR, param: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.param = param


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; `logprob` and `top` (id, logprob) only where the request asked for them."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class TokenMask(Protocol):
    """What a grammar says about the next token."""

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """One boolean per token."""

    def accept(self, token: int) -> None:
        """The token was chosen."""


class RowSampler:
    """The sampling of one sequence: its parameters, its random stream and the tokens it has made so far."""

    __slots__ = (
        "_base",
        "_bias_ids",
        "_bias_values",
        "_counts",
        "_made",
        "_mask",
        "_penalises",
        "_plain",
        "sampling",
    )

    def __init__(self, sampling: Sampling, *, seed: int, choice: int = 0, mask: TokenMask | None = None) -> None:
        self.sampling = sampling
        self._base = Rng(seed, f"choice {choice}" if choice else "").u64()
        self._made = 0
        self._mask = mask
        self._counts: dict[int, int] = {}
        self._penalises = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._bias_ids = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._bias_values = np.array([bias for _, bias in sampling.logit_bias], np.float32)
        self._plain = mask is None and not self._penalises and not sampling.logit_bias

    def choose(self, raw: Row) -> Choice:
        """The next token from float32[vocab] logits. Raises SamplingFailed."""
        row = raw if self._plain else self._adjusted(raw)
        if self.sampling.temperature < _COLDEST:
            token = int(row.argmax())
            _check(row[token])
        else:
            unit = Rng(self._base + self._made * _GOLDEN).unit()
            token = _sample(row, self.sampling, unit)
        self._made += 1
        if self._penalises:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._mask is not None:
            self._mask.accept(token)
        if not self.sampling.logprobs:
            return Choice(token)
        return _with_logprobs(raw, token, self.sampling.top_logprobs)

    def foresee(self, raw: Row, ahead: int) -> int:
        """What `choose` would pick `ahead` tokens from now, were these its logits; masks and penalties aside."""
        if self.sampling.temperature < _COLDEST:
            return int(raw.argmax())
        top = raw.max()
        if not np.isfinite(top):
            return 0  # a guess may be wrong
        return _sample(raw, self.sampling, Rng(self._base + (self._made + ahead) * _GOLDEN).unit())

    def _adjusted(self, raw: Row) -> Row:
        row = raw.copy()
        if self._mask is not None:
            row[~self._mask.allowed(len(row))] = -np.inf
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias_values
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            row[ids] -= self.sampling.presence_penalty + self.sampling.frequency_penalty * counts
        return row


def sample(logits: NDArray[np.float32], samplers: Sequence[RowSampler]) -> list[Choice | SamplingFailed]:
    """One choice per row of float32[rows, vocab]; a row that fails does not hurt the others."""
    assert len(logits) == len(samplers)
    chosen: list[Choice | SamplingFailed] = []
    for row, sampler in zip(logits, samplers, strict=True):
        try:
            chosen.append(sampler.choose(row))
        except SamplingFailed as failure:
            chosen.append(failure)
    return chosen


def _sample(row: Row, sampling: Sampling, unit: float) -> int:
    """A draw from the filtered distribution; `unit` in [0, 1) decides."""
    top = row.max()
    _check(top)
    weights = np.exp((row - top) * np.float32(1.0 / sampling.temperature))
    least = np.float32(sampling.min_p)  # the likeliest weighs 1
    if 0 < sampling.top_k < len(weights):
        at = len(weights) - sampling.top_k
        least = max(least, np.partition(weights, at)[at])
    if sampling.top_p < 1.0:
        left = weights[weights >= least] if sampling.top_k else weights
        least = max(least, _nucleus_edge(left, sampling.top_p))
    if least > 0.0:
        weights[weights < least] = 0.0
    return _draw(weights, unit)


def _nucleus_edge(weights: Row, top_p: float) -> np.float32:
    """The least weight in the nucleus: the likeliest tokens that together reach top_p of the mass.

    All tokens below (1 - top_p) of the mean weight weigh no more than 1 - top_p together, so they are outside: in
    the usual peaked distribution few are left to be sorted.
    """
    mass = float(weights.sum(dtype=np.float64))
    likely = np.sort(weights[weights >= (1.0 - top_p) * mass / len(weights) * 0.999])[::-1]
    reached = likely.cumsum(dtype=np.float64)
    edge: np.float32 = likely[min(int(np.searchsorted(reached, top_p * mass)), len(likely) - 1)]
    return edge


def _largest(weights: Row, count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest weights, largest first, equal ones by id."""
    if count == 1:
        return np.array([weights.argmax()])
    if count < len(weights):
        ids = np.sort(np.argpartition(weights, len(weights) - count)[-count:])
    else:
        ids = np.arange(len(weights))
    return ids[np.argsort(-weights[ids], kind="stable")]


def _draw(weights: Row, unit: float) -> int:
    """Index drawn in proportion to the weights: chunks first, then within the chunk."""
    size = len(weights)
    if size <= 4 * _CHUNK:
        return _pick(weights, unit * float(weights.sum(dtype=np.float64)))
    whole = size // _CHUNK * _CHUNK
    sums = weights[:whole].reshape(-1, _CHUNK).sum(axis=1, dtype=np.float64)
    if whole < size:
        sums = np.append(sums, weights[whole:].sum(dtype=np.float64))
    edges = sums.cumsum()
    at = min(int(np.searchsorted(edges, unit * edges[-1], side="right")), len(edges) - 1)
    rest = unit * edges[-1] - (edges[at - 1] if at else 0.0)
    return at * _CHUNK + _pick(weights[at * _CHUNK : (at + 1) * _CHUNK], rest)


def _pick(weights: Row, target: float) -> int:
    """First index at which the running sum passes `target`; rounding at the end falls back to the last weight."""
    at = int(np.searchsorted(weights.cumsum(dtype=np.float64), target, side="right"))
    return at if at < len(weights) else int(np.flatnonzero(weights)[-1])


def _with_logprobs(raw: Row, token: int, count: int) -> Choice:
    top = float(raw.max())
    norm = top + float(np.log(np.exp(raw - np.float32(top)).sum(dtype=np.float64)))
    likeliest: tuple[tuple[int, float], ...] = ()
    if count:
        ids = _largest(raw, min(count, len(raw)))
        likeliest = tuple([(int(i), float(raw[i]) - norm) for i in ids])
    return Choice(token, float(raw[token]) - norm, likeliest)


def _check(value: np.float32) -> None:
    if not np.isfinite(value):
        raise SamplingFailed("The model's output is not a number, or the grammar allows no token.")
