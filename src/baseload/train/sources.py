"""Where documents come from: plain text files, JSON lines of text or messages, and our guide's Markdown."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.domain.rng import Rng
from baseload.train.config import SourceConfig
from baseload.train.data import Document, Message, Source
from baseload.train.guide import GuideSource, parse_guide

_TEXT_PIECE_BYTES = 65_536  # a text file is read in pieces of about this size, cut at line ends


def open_source(config: SourceConfig) -> Source:
    """Open one configured source; DataError names the file and line at fault."""
    if config.kind == "text":
        return TextSource(_files(config.path, (".txt", ".md")))
    if config.kind == "jsonl":
        return JsonlSource(_files(config.path, (".jsonl",)))
    pairs = [pair for path in _files(config.path, (".md",)) for pair in parse_guide(path)]
    return GuideSource(pairs)


class TextSource:
    """Plain text files, read piece by piece; no file is ever wholly in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places = [
            (path, at) for path in files for at in range(0, max(path.stat().st_size, 1), _TEXT_PIECE_BYTES)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def document(self, index: int, rng: Rng) -> Document:
        """One piece of a file."""
        path, at = self._places[index]
        with path.open("rb") as file:
            begin = _line_start(file.seek(at) and at, path)
            end = _line_start(at + _TEXT_PIECE_BYTES, path)
            file.seek(begin)
            data = file.read(end - begin)
        try:
            return Document(text=data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 near byte {begin + error.start}.", hint="Convert it.") from None

    def texts(self) -> Iterator[str]:
        """All pieces in order."""
        for index in range(len(self)):
            yield self.document(index, Rng(0)).text

    def special_tokens(self) -> Sequence[str]:
        """None."""
        return ()


def _line_start(at: int, path: Path) -> int:
    """The beginning of the first line at or after byte `at`; the file's end where there is none."""
    if at == 0:
        return 0
    with path.open("rb") as file:
        file.seek(at - 1)
        file.readline()
        return file.tell()


class _Line(Struct):
    text: str | None = None
    messages: tuple[Message, ...] | None = None


class JsonlSource:
    """JSON lines with a `text` or a `messages` field; only the lines' places are held in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._lines: list[tuple[int, int, int]] = []  # file, number of the line from 1, byte
        for which, path in enumerate(files):
            at = 0
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        self._lines.append((which, number, at))
                    at += len(line)
        self._places = np.array(self._lines, np.int64).reshape(-1, 3)
        self._lines.clear()

    def __len__(self) -> int:
        return len(self._places)

    def document(self, index: int, rng: Rng) -> Document:
        """One line."""
        which, number, at = (int(value) for value in self._places[index])
        path = self._files[which]
        with path.open("rb") as file:
            file.seek(at)
            raw = file.readline()
        try:
            line = msgspec.json.decode(raw, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {number}: {error}.", hint="Mend or delete the line.") from None
        if (line.text is None) == (line.messages is None):
            raise DataError(
                f"{path}, line {number}: needs either `text` or `messages`.", hint="Give exactly one of them."
            )
        return Document(text=line.text or "", messages=line.messages or ())

    def texts(self) -> Iterator[str]:
        """The text and the messages of every line."""
        for index in range(len(self)):
            document = self.document(index, Rng(0))
            yield document.text or "\n".join(message.content for message in document.messages)

    def special_tokens(self) -> Sequence[str]:
        """None."""
        return ()


def _files(pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files a path, directory or glob names, in order of name; DataError when there are none."""
    path = Path(pattern)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())  # noqa: PTH207
    if not found:
        raise DataError(
            f"No training data at {pattern}.", hint=f"Name a file, a directory with {suffixes}, or a glob."
        )
    return found
