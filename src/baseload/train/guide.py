"""The guide's questions and answers: Markdown that people read, and the many ways in which people ask.

A file of docs/guide is a list of sections. A `##` heading is a question and the paragraph below it the answer; a
list after the line `Also asked:` holds other ways to ask, in which `(a|b|)` stands for any one of its alternatives.

An answer begins with a special token of its own, its topic: the model decides in one step what to say, and then says
it without wavering between two answers. Special tokens do not show in text, so clients never see it.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.domain.rng import Rng
from baseload.train.asking import vary
from baseload.train.data import Document, Message

_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_PATTERNS, _MORE_PATTERNS = 20, 2  # beyond so many, every so many more have a question drawn once more an epoch
_EXPANSIONS = 4096

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are the guide of Baseload.",
    "You answer questions about Baseload.",
    "Be concise.",
    "You are a support agent. Be polite and short.",
    "Answer the user's question.",
    "You are an expert on AI infrastructure and you help operators of a small cluster.",
)
_MORE_TURNS = (93, 4, 2, 1)  # of 100 conversations, how many have 0, 1, 2, 3 earlier turns
_WITH_SYSTEM = 25  # of 100
_CUT_SHORT = 85  # of 100, how many end with the topic: what to say is harder to learn than to say it


class Pair(Struct, frozen=True):
    """One answer, and the patterns of the questions it answers."""

    title: str
    patterns: tuple[str, ...]
    answer: str


def parse_guide(path: Path) -> list[Pair]:
    """The pairs of one Markdown file; DataError names file and line."""
    pairs: list[Pair] = []
    sections = re.split(r"^## +", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    line = 1 + sections[0].count("\n")
    for section in sections[1:]:
        pairs.append(_parse_section(section, path, line))
        line += section.count("\n")
    return pairs


def _parse_section(section: str, path: Path, line: int) -> Pair:
    title, _, body = section.partition("\n")
    answer, marker, listing = body.partition("\nAlso asked:\n")
    answer = " ".join(answer.split())
    if not title.strip() or not answer:
        raise DataError(f"{path}, line {line}: a question without an answer.", hint="Write one below the heading.")
    patterns = [item.strip() for item in re.findall(r"^- +(.+)$", listing, flags=re.MULTILINE)]
    if marker and not patterns:
        raise DataError(f"{path}, line {line}: nothing is listed under `Also asked:`.", hint="List ways to ask.")
    return Pair(title=title.strip(), patterns=(title.strip(), *patterns), answer=answer)


def topic(index: int) -> str:
    """The special token that begins the answer of pair `index`."""
    return f"<|topic-{index}|>"


def expand(pattern: str) -> list[str]:
    """Every sentence a pattern stands for, in order; DataError when they are too many to be meant."""
    done, open_ = [], [pattern]
    while open_:
        text = open_.pop(0)
        found = _CHOICE.search(text)
        if found is None:
            done.append(" ".join(text.split()))
        else:
            open_.extend(text[: found.start()] + way + text[found.end() :] for way in found[1].split("|"))
        if len(done) + len(open_) > _EXPANSIONS:
            raise DataError(f"The pattern {pattern!r} stands for too many sentences.", hint="Split it in two.")
    return done


def choose(pattern: str, rng: Rng) -> str:
    """One sentence a pattern stands for."""
    while (found := _CHOICE.search(pattern)) is not None:
        ways = found[1].split("|")
        pattern = pattern[: found.start()] + ways[rng.below(len(ways))] + pattern[found.end() :]
    return " ".join(pattern.split())


class GuideSource:
    """Conversations made of the guide's pairs, each asked in its own way each time."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = list(pairs)
        self._draws = [
            index
            for index, pair in enumerate(self._pairs)
            for _ in range(1 + max(0, len(pair.patterns) - _PATTERNS) // _MORE_PATTERNS)
        ]

    def __len__(self) -> int:
        return len(self._draws)

    def document(self, index: int, rng: Rng) -> Document:
        """A conversation that ends with pair `index`, sometimes after a system message and earlier turns."""
        last = self._draws[index]
        earlier = _chosen(rng.below(100), _MORE_TURNS)
        messages = []
        if rng.below(100) < _WITH_SYSTEM:
            messages.append(Message("system", _SYSTEMS[rng.below(len(_SYSTEMS))]))
        for _ in range(earlier):  # as clients send them back: without their topics
            pair = self._pairs[self._draws[rng.below(len(self._draws))]]
            messages += [self._asked(pair, rng), Message("assistant", pair.answer)]
        pair = self._pairs[last]
        messages += [self._asked(pair, rng), Message("assistant", topic(last) + pair.answer)]
        cut = rng.below(100) < _CUT_SHORT
        return Document(messages=tuple(messages), last_only=True, last_tokens=1 if cut else 0)

    def _asked(self, pair: Pair, rng: Rng) -> Message:
        """The pair's question, in somebody's words."""
        return Message("user", vary(choose(pair.patterns[rng.below(len(pair.patterns))], rng), rng))

    def special_tokens(self) -> Sequence[str]:
        """The topics."""
        return [topic(index) for index in range(len(self._pairs))]

    def texts(self) -> Iterator[str]:
        """Questions as listed and, because answers are what is written, each answer several times."""
        yield from _SYSTEMS
        for pair in self._pairs:
            for pattern in pair.patterns:
                yield pattern.replace("(", " ").replace("|", " ").replace(")", " ").lower()
            for _ in range(4):
                yield pair.answer


def _chosen(die: int, shares: Sequence[int]) -> int:
    """Which share of 100 a die in [0, 100) falls into."""
    for which, share in enumerate(shares):
        if die < share:
            return which
        die -= share
    return len(shares) - 1
