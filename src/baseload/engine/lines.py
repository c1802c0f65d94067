"""The engine loop's record of each sequence (a line), and of the request it belongs to."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.core.batch import Finished
from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.engine.detokenize import Detokenizer, StopStrings
from baseload.engine.jobs import Ended, Job
from baseload.engine.sampling import Choice, RowSampler, SamplingFailed


@dataclass(frozen=True, slots=True)
class Made:
    """One token of an answer: its choice, the text it adds, whether it is part of the answer, and ends it."""

    choice: Choice
    text: str
    shown: bool
    stop: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What one step made for one sequence: one token or more, or why it broke."""

    tokens: list[Made]
    failure: SamplingFailed | None = None


class Line:
    """One sequence: what turns its tokens into an answer."""

    __slots__ = (
        "block_array", "block_list", "detokenizer", "grammar", "index", "request_id", "sampler", "stops",
    )  # fmt: skip

    def __init__(self, job: Job, index: int, token_bytes: Callable[[int], bytes]) -> None:
        choice = index % job.sampling.n
        self.request_id = job.request_id
        self.index = index
        self.grammar = job.grammar.copy() if job.grammar is not None else None
        self.sampler = RowSampler(job.sampling, seed=job.seed, choice=choice, mask=self.grammar)
        self.detokenizer = Detokenizer(token_bytes)
        self.stops = StopStrings(job.sampling.stop)
        self.block_list: Sequence[int] = ()
        self.block_array = np.zeros(0, np.int32)

    def block_table(self, blocks: Sequence[int]) -> NDArray[np.int32]:
        """The blocks as an array, made anew only when they changed (lists grow in place, or are replaced)."""
        if blocks is not self.block_list or len(blocks) != len(self.block_array):
            self.block_list = blocks
            self.block_array = np.array(blocks, np.int32)
        return self.block_array

    def answer(self, rows: NDArray[np.float32], guesses: Sequence[int], end_tokens: Container[int]) -> "Answer":
        """Sample after each of rows[1 + len(guesses), vocab], for as long as the guess that stands next is right."""
        tokens: list[Made] = []
        for at in range(len(guesses) + 1):
            try:
                choice = self.sampler.choose(rows[at])
            except SamplingFailed as failure:
                return Answer(tokens, failure)
            text, shown, stop = self.advance(choice.token, end_tokens)
            tokens.append(Made(choice, text, shown, stop))
            if stop or at == len(guesses) or choice.token != guesses[at]:
                break
        return Answer(tokens)

    def advance(self, token: int, end_tokens: Container[int]) -> tuple[str, bool, bool]:
        """(text to show, whether the token is part of the answer, whether the answer ends here)."""
        sampling = self.sampler.sampling
        if token in end_tokens and not sampling.ignore_eos:
            return self.stops.flush(), False, True
        if token in sampling.stop_token_ids:
            return self.stops.flush(), False, True
        text = self.stops.push(self.detokenizer.push(token))
        if self.stops.found is not None:
            return text, True, True
        if self.grammar is not None and self.grammar.complete:
            return text + self.stops.flush(), token not in end_tokens, True
        return text, True, False


class OpenRequest:
    """A request's sequences and what the finished ones used."""

    __slots__ = ("finished", "job", "open")

    def __init__(self, job: Job, seq_ids: Sequence[str]) -> None:
        self.job = job
        self.open: dict[str, None] = dict.fromkeys(seq_ids)
        self.finished: list[Finished] = []


def ended(request: OpenRequest) -> Ended:
    """The request's sums. A prompt counts once, however many choices; phases are those of the whole request."""
    ends = {end.seq_id: end for end in request.finished}
    job = request.job
    firsts = [ends[f"{job.request_id}/{at * job.sampling.n}"] for at in range(len(job.prompts))]
    counts = TokenCounts(
        prompt=sum(end.tokens.prompt for end in firsts),
        cached_in=sum(end.tokens.cached_in for end in firsts),
        completion=sum(end.tokens.completion for end in request.finished),
    )
    queue = min(end.phases.queue_ns for end in request.finished)
    first = min(end.phases.queue_ns + end.phases.prefill_ns for end in request.finished)
    last = max(end.phases.queue_ns + end.phases.prefill_ns + end.phases.decode_ns for end in request.finished)
    return Ended(job.request_id, counts, PhaseTimes(queue, first - queue, last - first))
