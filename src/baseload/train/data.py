"""Streaming data: sources → documents → tokens → rows packed with whole pieces. Seeded, and its position is saved.

Every document is a pure function of (seed, source, epoch, index), every epoch of a source is a seeded shuffle, and
every draw chooses its source by a seeded die. So the position is a handful of integers and the pieces not yet packed.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from baseload.domain.errors import DataError
from baseload.domain.rng import Rng


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Document(Struct, frozen=True):
    """One example: running text, or a conversation of which the assistant's words are learnt.

    `last_only`: only the last answer is learnt. `last_tokens` > 0 keeps only so many of its tokens: a cheap lesson in
    what to begin to say.
    """

    text: str = ""
    messages: tuple[Message, ...] = ()
    last_only: bool = False
    last_tokens: int = 0


class Source(Protocol):
    """A set of documents that can be read one at a time, in any order."""

    def __len__(self) -> int:
        """How many documents one epoch has."""

    def document(self, index: int, rng: Rng) -> Document:
        """Document `index` of an epoch; `rng` is for sources that vary their documents."""

    def texts(self) -> Iterator[str]:
        """All text once, to train a tokenizer on."""

    def special_tokens(self) -> Sequence[str]:
        """Tokens of their own that this source's documents contain; they never show in decoded text."""


class Piece(Struct, frozen=True):
    """Tokens that stay together in one row: a conversation, or a window of a long document."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]  # of each token as a prediction target


class Encoder(Protocol):
    """Documents to tokens; the weight of a token is its weight in the loss when it is the one to predict."""

    def encode(self, document: Document) -> Piece:
        """The whole document as one piece, of any length."""


class Batch(Struct, frozen=True):
    """What one step learns from; arrays of shape (rows, row_tokens). Segment 0 is padding."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    segments: NDArray[np.int32]
    positions: NDArray[np.int32]


class Position(Struct, frozen=True):
    """Where a stream stands, between two batches."""

    draws: int
    taken: tuple[int, ...]  # documents drawn from each source since the beginning
    waiting: tuple[Piece, ...]  # drawn but not yet in a batch


class Stream:
    """An endless sequence of batches from weighted sources; `position` and `seek` make it resumable."""

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        *,
        encoder: Encoder,
        seed: int,
        batch_rows: int,
        row_tokens: int,
    ) -> None:
        self._sources = [source for source, _ in sources]
        weights = [weight if len(source) else 0.0 for source, weight in sources]
        if not sum(weights):
            raise DataError("The training sources hold no documents.", hint="Check `sources[].path`.")
        self._thresholds = np.cumsum(np.array(weights) / sum(weights))
        self._encoder = encoder
        self._seed = seed
        self._rows = batch_rows
        self._row_tokens = row_tokens
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # source → (epoch, its order)
        self._draws = 0
        self._taken = [0] * len(self._sources)
        self._waiting: list[Piece] = []

    @property
    def position(self) -> Position:
        """Where the next batch begins."""
        return Position(draws=self._draws, taken=tuple(self._taken), waiting=tuple(self._waiting))

    def seek(self, position: Position) -> None:
        """Go to a saved position; DataError where the sources are not those it was saved with."""
        if len(position.taken) != len(self._sources):
            raise DataError(
                f"The checkpoint was made with {len(position.taken)} sources, the configuration has "
                f"{len(self._sources)}.",
                hint="Start afresh with --fresh.",
            )
        self._draws = position.draws
        self._taken = list(position.taken)
        self._waiting = list(position.waiting)

    def next_batch(self) -> Batch:
        """Pack pieces first-fit until one fits in no row any more; that one begins the next batch."""
        rows: list[list[Piece]] = [[] for _ in range(self._rows)]
        room = [self._row_tokens] * self._rows
        while True:
            if not self._waiting:
                self._waiting.extend(_windows(self._draw(), self._row_tokens))
                continue
            need = len(self._waiting[0].tokens) - 1
            fit = next((i for i, free in enumerate(room) if free >= need), None)
            if fit is None:
                return self._lay_out(rows)
            rows[fit].append(self._waiting.pop(0))
            room[fit] -= need

    def _draw(self) -> Piece:
        """The next document, encoded."""
        die = Rng(self._seed, f"mix/{self._draws}").unit()
        which = int(np.searchsorted(self._thresholds, die, side="right"))
        which = min(which, len(self._sources) - 1)
        source = self._sources[which]
        epoch, place = divmod(self._taken[which], len(source))
        index = int(self._order(which, epoch)[place])
        self._draws += 1
        self._taken[which] += 1
        rng = Rng(self._seed, f"document/{which}/{epoch}/{index}")
        document = source.document(index, rng)
        piece = self._encoder.encode(document)
        if document.last_only:  # what is too long for a row loses its beginning, not the question
            tail = self._row_tokens + 1
            piece = Piece(piece.tokens[-tail:], piece.weights[-tail:])
        return piece

    def _order(self, which: int, epoch: int) -> NDArray[np.int64]:
        """The shuffled order of one epoch of a source; the current epoch's is kept."""
        kept = self._orders.get(which)
        if kept is None or kept[0] != epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, which, epoch]))
            kept = (epoch, generator.permutation(len(self._sources[which])))
            self._orders[which] = kept
        return kept[1]

    def _lay_out(self, rows: list[list[Piece]]) -> Batch:
        shape = (self._rows, self._row_tokens)
        tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        weights = np.zeros(shape, np.float32)
        for row, pieces in enumerate(rows):
            at = 0
            for segment, piece in enumerate(pieces, start=1):
                span = slice(at, at + len(piece.tokens) - 1)
                tokens[row, span] = piece.tokens[:-1]
                targets[row, span] = piece.tokens[1:]
                weights[row, span] = piece.weights[1:]
                segments[row, span] = segment
                positions[row, span] = np.arange(len(piece.tokens) - 1)
                at = span.stop
        return Batch(tokens=tokens, targets=targets, weights=weights, segments=segments, positions=positions)


def _windows(piece: Piece, row_tokens: int) -> list[Piece]:
    """Cut a piece into windows that fit a row; neighbours share one token, so every token is predicted once."""
    last = len(piece.tokens) - 1
    return [
        Piece(piece.tokens[at : at + row_tokens + 1], piece.weights[at : at + row_tokens + 1])
        for at in range(0, last, row_tokens)
    ]
