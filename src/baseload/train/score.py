"""How many held-out questions a guide answers word for word.

`python -m baseload.train.score MODEL_DIR GUIDE_DIR QUESTIONS.tsv` tells the share, and the questions it misses.

A line of the questions is `question<TAB>title of the pair in the guide`. Under teacher forcing, greedy decoding gives
the expected answer exactly when every one of its tokens is the most likely next one; so one forward pass suffices.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from baseload.domain.errors import DataError
from baseload.engine.registry import forward_full
from baseload.engine.weights import load_params
from baseload.train.data import Document, Message
from baseload.train.guide import parse_guide, topic
from baseload.train.tokens import open_encoder

_ROWS, _ROW_TOKENS, _SHOWN_TOKENS = 16, 128, 10


class Score(Struct, frozen=True):
    """One question's result: whether the topic, and whether every word is as expected, and how the answer begins."""

    question: str
    is_on_topic: bool
    is_exact: bool
    begins: str


def score(model_dir: Path, guide_dir: Path, questions: Path) -> list[Score]:
    """The result of each question of a file; DataError names a line that fits no pair."""
    config, host = load_params(model_dir, dtype="float32")
    params = jax.tree.map(jnp.array, host)
    tokenizer, encoder = open_encoder(model_dir, prompt_weight=0.0)
    best = jax.jit(lambda tokens: jnp.argmax(forward_full(config, params, tokens), axis=-1))
    pairs = [pair for path in sorted(guide_dir.glob("*.md")) for pair in parse_guide(path)]
    answers = {pair.title: topic(index) + pair.answer for index, pair in enumerate(pairs)}
    results = []
    for batch in _batches(_read(questions, answers), _ROWS):
        rows = np.zeros((_ROWS, _ROW_TOKENS), np.int32)
        pieces = [
            encoder.encode(Document(messages=(Message("user", ask), Message("assistant", answers[title]))))
            for ask, title in batch
        ]
        for row, piece in enumerate(pieces):
            rows[row, : len(piece.tokens)] = piece.tokens
        chosen = np.asarray(best(rows))
        starts = [piece.weights.index(1.0) for piece in pieces]
        exact = [
            bool(np.array_equal(chosen[row, start - 1 : len(piece.tokens) - 1], piece.tokens[start:]))
            for row, (piece, start) in enumerate(zip(pieces, starts, strict=True))
        ]
        begun = _begin(rows, starts, best) if not all(exact) else rows
        for row, (ask, _) in enumerate(batch):
            text = tokenizer.decode([int(t) for t in begun[row, starts[row] : starts[row] + _SHOWN_TOKENS]])
            results.append(Score(ask, bool(chosen[row, starts[row] - 1] == rows[row, starts[row]]), exact[row], text))
    return results


def _begin(rows: NDArray[np.int32], starts: Sequence[int], best: object) -> NDArray[np.int32]:
    """The rows with their answers' first tokens replaced by the model's own choice."""
    assert callable(best)
    rows = rows.copy()
    for offset in range(_SHOWN_TOKENS):
        chosen = np.asarray(best(rows))
        for row, start in enumerate(starts):
            rows[row, start + offset] = chosen[row, start + offset - 1]
    return rows


def _read(questions: Path, answers: dict[str, str]) -> list[tuple[str, str]]:
    lines = []
    for number, line in enumerate(questions.read_text(encoding="utf-8").splitlines(), start=1):
        ask, _, title = line.partition("\t")
        if title not in answers:
            raise DataError(f"{questions}, line {number}: the guide has no pair {title!r}.", hint="Mend the title.")
        lines.append((ask, title))
    return lines


def _batches(lines: Sequence[tuple[str, str]], rows: int) -> list[Sequence[tuple[str, str]]]:
    return [lines[at : at + rows] for at in range(0, len(lines), rows)]


def _main() -> None:
    model_dir, guide_dir, questions = (Path(argument) for argument in sys.argv[1:4])
    results = score(model_dir, guide_dir, questions)
    for one in results:
        if not one.is_exact:
            print(f"{one.question}  →  {one.begins} …")
    on_topic, exact = sum(one.is_on_topic for one in results), sum(one.is_exact for one in results)
    print(f"{on_topic} on topic and {exact} word for word, of {len(results)}")


if __name__ == "__main__":
    _main()
