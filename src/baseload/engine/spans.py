"""What is asked of a runner: spans of tokens in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from baseload.engine.config import ModelConfig
from baseload.engine.programs import ProgramCache


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence at positions start … start + len(tokens) - 1.

    Block i of `blocks` holds the sequence's positions i · block_tokens …; earlier positions are in the cache.
    """

    tokens: np.ndarray  # int32[n], n ≥ 1
    start: int
    blocks: np.ndarray  # int32[m], enough for start + n positions
    wants_logits: bool
    logits: int = 1  # where it wants any: after each of its last so many tokens


class StepRunner(Protocol):
    """The part of a runner that takes steps: what the hot loop uses of the model, and drafting of a smaller one."""

    @property
    def block_tokens(self) -> int:
        """Tokens per cache block."""

    @property
    def num_blocks(self) -> int:
        """Blocks in the cache, numbered from 0."""

    @property
    def max_context(self) -> int:
        """Longest sequence, prompt and answer together."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, from config.json and generation_config.json."""

    def run(self, spans: Sequence[Span]) -> np.ndarray:
        """Computes all spans and writes their keys and values; float32[rows, vocab] on the host, in span order."""


class ModelRunner(StepRunner, Protocol):
    """A model opened for serving, on XLA or on the native kernels."""

    config: ModelConfig
    programs: ProgramCache

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    def warm(self, *, background: bool = True) -> None:
        """Loads or compiles what is not ready yet; in a thread of its own unless told otherwise."""

    def close(self) -> None:
        """Ends the background warming."""


def check_spans(spans: Sequence[Span], *, max_context: int, block_tokens: int) -> None:
    """Raises ValueError where there is no span, or one has no tokens, too many positions or too few blocks."""
    if not spans:
        raise ValueError("run needs at least one span")
    for span in spans:
        end = span.start + len(span.tokens)
        if not 0 < end <= max_context or len(span.blocks) * block_tokens < end or not len(span.tokens):
            raise ValueError(
                f"a span of {len(span.tokens)} tokens from {span.start} needs 1 to {max_context} positions"
                f" and blocks for them; it has {len(span.blocks)} blocks of {block_tokens}"
            )
