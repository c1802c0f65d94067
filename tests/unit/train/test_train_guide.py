"""The guide's Markdown and the ways people ask."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.domain.errors import DataError
from baseload.domain.rng import Rng
from baseload.train.asking import vary
from baseload.train.guide import GuideSource, Pair, choose, expand, parse_guide, topic

GUIDE = Path(__file__).parents[3] / "docs" / "guide"
SECTION = """# Title
Words that no one learns.

## How do I?

Do it
like this.

Also asked:
- (how|what|) now
- then

## Why?

Because.
"""


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [pair for path in sorted(GUIDE.glob("*.md")) for pair in parse_guide(path)]


def _plain(question: str) -> str:
    return re.sub(r"[^a-z0-9 ]", "", question.lower()).strip()


def test_sections_become_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(SECTION)
    assert parse_guide(tmp_path / "a.md") == [
        Pair("How do I?", ("How do I?", "(how|what|) now", "then"), "Do it like this."),
        Pair("Why?", ("Why?",), "Because."),
    ]


@pytest.mark.parametrize("broken", ["## Q\n\n## R\n\nA\n", "## Q\n\nA\n\nAlso asked:\n\n"])
def test_a_broken_section_is_named_by_line(tmp_path: Path, broken: str) -> None:
    (tmp_path / "a.md").write_text("# T\n\n" + broken)
    with pytest.raises(DataError, match=r"a\.md, line 3"):
        parse_guide(tmp_path / "a.md")


def test_patterns_expand_to_every_combination() -> None:
    assert expand("(a|b|) c (d|e)") == ["a c d", "a c e", "b c d", "b c e", "c d", "c e"]
    with pytest.raises(DataError, match="too many"):
        expand("(a|b)" * 13)


@given(st.integers(0, 2**64 - 1))
def test_a_choice_is_one_of_the_expansions(seed: int) -> None:
    assert choose("(a|b|) c (d|e)", Rng(seed)) in expand("(a|b|) c (d|e)")


@given(st.text(min_size=1), st.integers(0, 2**64 - 1))
def test_varying_a_question_is_a_function_of_the_seed(question: str, seed: int) -> None:
    assert vary(question, Rng(seed)) == vary(question, Rng(seed))


def test_marks_alone_and_nothing_can_be_varied() -> None:
    varied = {vary(text, Rng(seed)) for text in ("???", "") for seed in range(300)}
    assert len(varied) > 20  # greetings and marks around nothing


def test_varying_mostly_keeps_the_question_recognisable() -> None:
    rng = Rng(7)
    varied = [vary("How do I scale a model to zero?", rng) for _ in range(300)]
    assert len(set(varied)) > 150
    assert sum("zero" in text for text in varied) > 240


def test_conversations_end_with_the_answer_asked_for() -> None:
    pairs = [Pair("Q1?", ("Q1?",), "A1."), Pair("Q2?", ("Q2?",), "A2.")]
    source = GuideSource(pairs)
    documents = [source.document(1, Rng(seed)) for seed in range(600)]
    assert all(one.messages[-1].content == topic(1) + "A2." for one in documents)
    assert all(m.content in ("A1.", "A2.") for one in documents for m in one.messages[:-1] if m.role == "assistant")
    assert {len(one.messages) % 2 for one in documents} == {0, 1}  # with and without a system message
    assert max(len(one.messages) for one in documents) >= 8


def test_every_pair_can_be_asked_in_a_dozen_ways_and_answered_briefly(pairs: list[Pair]) -> None:
    assert len(pairs) >= 120
    for pair in pairs:
        assert len({_plain(way) for pattern in pair.patterns for way in expand(pattern)}) >= 12, pair.title
        assert len(pair.answer) <= 240, pair.title


def test_no_question_has_two_answers(pairs: list[Pair]) -> None:
    owner: dict[str, str] = {}
    for pair in pairs:
        for pattern in pair.patterns:
            for way in expand(pattern):
                assert owner.setdefault(_plain(way), pair.title) == pair.title, way
