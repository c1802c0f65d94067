"""The stream: nothing lost or doubled within an epoch, and a position from which it goes on exactly."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.domain.errors import DataError
from baseload.domain.rng import Rng
from baseload.train.config import SourceConfig
from baseload.train.data import Document, Piece, Position, Stream
from baseload.train.sources import TextSource, open_source


class Numbers:
    """A source whose document `i` is `lengths[i]` copies of the number it begins with."""

    def __init__(self, lengths: list[int], first: int = 1) -> None:
        self.lengths, self.first = lengths, first

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int, rng: Rng) -> Document:
        return Document(text=" ".join([str(self.first + index)] * self.lengths[index]))

    def texts(self) -> Iterator[str]:
        yield ""

    def special_tokens(self) -> tuple[str, ...]:
        return ()


class Plain:
    """Every word is a token that says its number."""

    def encode(self, document: Document) -> Piece:
        ids = tuple(int(word) for word in document.text.split())
        return Piece(ids, (1.0,) * len(ids))


def _stream(lengths: list[int], *, seed: int = 3, rows: int = 2, row_tokens: int = 16) -> Stream:
    sources = [(Numbers(lengths), 1.0), (Numbers([3, 4], first=1000), 0.3)]
    return Stream(sources, encoder=Plain(), seed=seed, batch_rows=rows, row_tokens=row_tokens)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=12), st.integers(0, 2**32), st.integers(1, 6))
def test_a_stream_goes_on_exactly_from_a_saved_position(lengths: list[int], seed: int, before: int) -> None:
    whole = _stream(lengths, seed=seed)
    for _ in range(before):
        whole.next_batch()
    saved = msgspec.json.encode(whole.position)
    resumed = _stream(lengths, seed=seed)
    resumed.seek(msgspec.json.decode(saved, type=Position))
    for _ in range(3):
        left, right = whole.next_batch(), resumed.next_batch()
        for name in ("tokens", "targets", "weights", "segments", "positions"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


@given(st.lists(st.integers(2, 40), min_size=1, max_size=9), st.integers(0, 2**32))
def test_nothing_is_lost_or_doubled(lengths: list[int], seed: int) -> None:
    stream = Stream([(Numbers(lengths), 1.0)], encoder=Plain(), seed=seed, batch_rows=1, row_tokens=16)
    seen: Counter[int] = Counter()
    while stream.position.taken[0] < 2 * len(lengths):
        batch = stream.next_batch()
        learnt = batch.weights > 0
        np.testing.assert_array_equal(batch.tokens[learnt], batch.targets[learnt])  # never across a seam
        seen.update(batch.targets[learnt].tolist())
    for piece in stream.position.waiting:
        seen.update(piece.tokens[1:])
    times, more = divmod(stream.position.taken[0], len(lengths))
    counts = [seen[i + 1] // (length - 1) for i, length in enumerate(lengths)]
    assert all(seen[i + 1] % (length - 1) == 0 for i, length in enumerate(lengths))
    assert sorted(counts) == [times] * (len(lengths) - more) + [times + 1] * more


def test_sources_mix_by_weight() -> None:
    stream = _stream([8] * 5)
    for _ in range(400):
        stream.next_batch()
    first, second = stream.position.taken
    assert second / (first + second) == pytest.approx(0.3 / 1.3, abs=0.04)


def test_another_number_of_sources_is_refused() -> None:
    stream = _stream([4])
    with pytest.raises(DataError, match="has 2"):
        stream.seek(Position(draws=0, taken=(0,), waiting=()))


def test_text_files_are_read_piece_by_piece_without_loss(tmp_path: Path) -> None:
    text = "".join(f"line {i} with an ö\n" for i in range(20_000))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("no end of line")
    (tmp_path / "empty.txt").write_text("")
    source = TextSource([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "empty.txt"])
    assert len(source) > 5
    assert "".join(source.texts()) == text + "no end of line"


def test_json_lines_of_text_and_messages(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "abc"}\n\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    source = open_source(SourceConfig(kind="jsonl", path=str(tmp_path)))
    assert len(source) == 2
    assert source.document(0, Rng(0)).text == "abc"
    assert source.document(1, Rng(0)).messages[0].content == "hi"
    assert list(source.texts()) == ["abc", "hi"]


@pytest.mark.parametrize("line", ["{", '{"text": "a", "messages": []}', "{}", '{"text": 3}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "abc"}\n' + line + "\n")
    source = open_source(SourceConfig(kind="jsonl", path=str(path)))
    with pytest.raises(DataError, match="line 2"):
        source.document(1, Rng(0))


def test_a_source_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No training data"):
        open_source(SourceConfig(kind="text", path=str(tmp_path / "none" / "*.txt")))
