"""What a model is calibrated on: a text of the user's, or what it says itself when nobody gives one."""

import codecs
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baseload.domain.errors import DataError
from baseload.domain.model import EngineSpec
from baseload.engine.config import ModelConfig
from baseload.engine.quantize.openings import OPENINGS
from baseload.engine.registry import read_config
from baseload.engine.runner import open_runner
from baseload.engine.spans import ModelRunner, Span
from baseload.engine.tokenizer import TextTokenizer

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rows of equal length: tokens int32[rows, length], and of which kind each is, int8[rows, length]."""

    tokens: Tokens
    kinds: NDArray[np.int8]  # PADDING, GIVEN or COUNTS

    def part(self, rows: NDArray[np.bool_]) -> "Calibration":
        """Some of the rows."""
        return Calibration(self.tokens[rows], self.kinds[rows])

    @property
    def counts(self) -> NDArray[np.float32]:
        """float32[rows, length]: 1 where the prediction of a token is measured."""
        return np.asarray(self.kinds == COUNTS, np.float32)

    @property
    def mask(self) -> NDArray[np.float32]:
        """float32[rows, length]: 0 where there is only padding."""
        return np.asarray(self.kinds != PADDING, np.float32)


PADDING, GIVEN, COUNTS = 0, 1, 2  # nothing; part of a prompt; text whose prediction is measured
Progress = Callable[[int, int], None]  # (done, of)
ROW_TOKENS = 256
MAX_ROWS = 128  # 32,768 tokens
_OWN_TOKENS = 128  # generated from each opening
_OWN_ROUNDS = ((200_000_000, 4),)  # so many up to that size; each opens with words of the last
_TOGETHER, _ROOM = 32, 256  # texts written at a time, and the most tokens of each
_MIN_TOKENS = 64
_MOST_BYTES, _PIECES = 8 << 20, 64  # of a text that are read; of a longer one in so many pieces


def from_file(path: Path, tokenizer: TextTokenizer, config: ModelConfig) -> Calibration:
    """A UTF-8 text file, rows spread evenly over it. DataError where it is of no use."""
    try:
        text = _read(path)
    except FileNotFoundError:
        raise DataError(f"There is no calibration text at {path}.", hint="Check --calibrate.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.", hint="Give a plain text file.") from None
    return rows_of(tokenizer.encode(text, special=False), config, where=str(path))


def _read(path: Path) -> str:
    """The text, or of a large one pieces spread evenly over it. UnicodeDecodeError where it is none."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _MOST_BYTES:
            return file.read(_MOST_BYTES).decode("utf-8")
        found = []
        for piece in range(_PIECES):
            file.seek((size - _MOST_BYTES // _PIECES) * piece // (_PIECES - 1))
            raw = file.read(_MOST_BYTES // _PIECES)
            begin = next((at for at in range(4) if raw[at] & 0xC0 != 0x80), 0)  # within a character
            found.append(codecs.getincrementaldecoder("utf-8")().decode(raw[begin:]))
    return "\n".join(found)


def rows_of(ids: list[int], config: ModelConfig, *, where: str = "the text", most: int = MAX_ROWS) -> Calibration:
    """Token ids as rows of equal length, each after the model's begin token where it has one; at most `most`."""
    begin = [] if config.bos_token_id is None else [config.bos_token_id]
    if len(ids) < _MIN_TOKENS:
        raise DataError(
            f"{where} has {len(ids)} tokens; at least {_MIN_TOKENS} are needed.", hint="Give a longer one."
        )
    if max(ids) >= config.vocab_size:
        raise DataError(f"{where} has tokens that the model does not know.", hint="Check tokenizer.json.")
    length = min(ROW_TOKENS, config.max_context, len(ids) + len(begin)) - len(begin)
    count = len(ids) // length
    body = np.array(ids[: count * length], np.int32).reshape(count, length)
    chosen = body[np.linspace(0, count - 1, min(count, most)).astype(int)]
    tokens = np.concatenate([np.tile(np.array(begin, np.int32), (len(chosen), 1)), chosen], axis=1)
    return Calibration(tokens, np.full(tokens.shape, COUNTS, np.int8))


def from_itself(model_dir: Path, tokenizer: TextTokenizer, *, seed: int, progress: Progress) -> Calibration:
    """What the model writes after each of OPENINGS, sampled at temperature 1; reproducible. Progress in tokens."""
    config = read_config(model_dir)
    spec = EngineSpec(max_seqs=_TOGETHER, kv_cache_bytes=0, max_context=_ROOM, prefix_cache=False)
    runner = open_runner(model_dir, spec=spec, cache_dir=None)
    try:
        rounds = next((count for most, count in _OWN_ROUNDS if config.parameters <= most), 1)
        total = rounds * len(OPENINGS) * _OWN_TOKENS
        rng = np.random.Generator(np.random.PCG64(seed))
        openings = list(OPENINGS)
        prompts: list[list[int]] = []
        texts: list[list[int]] = []
        for turn in range(rounds):
            new = [_prompt(tokenizer, opening)[: runner.max_context // 2] for opening in openings]
            for first in range(0, len(new), _TOGETHER):
                done = (turn * len(OPENINGS) + first) * _OWN_TOKENS
                some = new[first : first + _TOGETHER]
                texts += _continue(runner, some, rng, partial(_further, progress, done, total))
            prompts += new
            openings = _picked_up(tokenizer, texts[-len(new) :], new, rng)
        progress(total, total)
        return _padded(texts, prompts)
    finally:
        runner.close()


def _further(progress: Progress, done: int, total: int, more: int) -> None:
    progress(done + more, total)


def _padded(texts: list[list[int]], prompts: list[list[int]]) -> Calibration:
    tokens = np.zeros((len(texts), max(map(len, texts))), np.int32)
    kinds = np.full(tokens.shape, PADDING, np.int8)
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        tokens[row, : len(text)] = text
        kinds[row, : len(prompt)], kinds[row, len(prompt) : len(text)] = GIVEN, COUNTS
    return Calibration(tokens, kinds)


def _picked_up(
    tokenizer: TextTokenizer, texts: list[list[int]], prompts: list[list[int]], rng: np.random.Generator
) -> list[str]:
    """An opening from each answer: some words of it, so that the next round is about what the model knows."""
    openings = []
    for at, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        raw = b"".join(tokenizer.token_bytes(token) for token in text[len(prompt) :])
        words = raw.decode("utf-8", "ignore").split()
        count = int(rng.integers(3, 10))
        first = int(rng.integers(0, max(len(words) - count, 0) + 1))
        openings.append(" ".join(words[first : first + count]) or OPENINGS[at % len(OPENINGS)])
    return openings


def _prompt(tokenizer: TextTokenizer, opening: str) -> list[int]:
    if tokenizer.chat is None:
        return tokenizer.encode(opening, special=True)
    return tokenizer.encode(tokenizer.chat.render([{"role": "user", "content": opening}]), special=False)


def _continue(
    runner: ModelRunner, prompts: list[list[int]], rng: np.random.Generator, wrote: Callable[[int], None]
) -> list[list[int]]:
    """Each prompt with what follows; a text that ends is ended there. `wrote` hears of about how many tokens."""
    each = min(_OWN_TOKENS + max(map(len, prompts)), runner.max_context)
    blocks = -(-each // runner.block_tokens)
    room = max(runner.num_blocks // blocks, 1)
    least = max(map(len, prompts))
    done: list[list[int]] = []
    for first in range(0, len(prompts), room):
        texts = [list(prompt) for prompt in prompts[first : first + room]]
        tables = [np.arange(at * blocks, (at + 1) * blocks, dtype=np.int32) for at in range(len(texts))]
        open_ = list(range(len(texts)))
        given = [Span(np.array(text, np.int32), 0, table, True) for text, table in zip(texts, tables, strict=True)]
        for text, row in zip(texts, runner.run(given), strict=True):
            text.append(_sample(row, rng))
        while open_:
            wrote(first * _OWN_TOKENS + len(texts) * min(max(max(map(len, texts)) - least, 0), _OWN_TOKENS))
            open_ = [at for at in open_ if len(texts[at]) < each and texts[at][-1] not in runner.eos_token_ids]
            if open_:
                spans = [
                    Span(np.array(texts[at][-1:], np.int32), len(texts[at]) - 1, tables[at], True) for at in open_
                ]
                for at, row in zip(open_, runner.run(spans), strict=True):
                    texts[at].append(_sample(row, rng))
        done += texts
    return done


def _sample(logits: NDArray[np.float32], rng: np.random.Generator) -> int:
    shares = np.exp(logits.astype(np.float64) - float(np.max(logits)))
    return int(
        np.searchsorted(np.cumsum(shares), rng.random() * np.sum(shares), side="right").clip(0, len(logits) - 1)
    )
