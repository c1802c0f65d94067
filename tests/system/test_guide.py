"""The model that comes with Baseload knows its subject: 40 questions in words it was not trained on, greedily."""

import queue
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest

from baseload.domain.model import EngineSpec
from baseload.domain.sampling import Sampling
from baseload.engine.jobs import Delta, Ended, Failed, Job, Output
from baseload.engine.loop import EngineLoop
from baseload.engine.runner import open_runner
from baseload.engine.tokenizer import TextTokenizer
from baseload.train.guide import expand, parse_guide

GUIDE = Path(str(files("baseload"))) / "models" / "guide"
DOCS = Path(__file__).parents[2] / "docs" / "guide"
QUESTIONS = Path(__file__).parent / "guide_questions.jsonl"
HELD_OUT = DOCS.parents[1] / "configs" / "guide-heldout.tsv"
SPEC = EngineSpec(max_seqs=16, max_step_tokens=64, dtype="float32")


class Question(msgspec.Struct, frozen=True):
    """What is asked, and the expression its answer must match."""

    ask: str
    fact: str


def _questions() -> list[Question]:
    return [msgspec.json.decode(line, type=Question) for line in QUESTIONS.read_bytes().splitlines()]


class Guide:
    """The shipped model behind our own engine."""

    def __init__(self, cache: Path) -> None:
        self._tokenizer = TextTokenizer.open(GUIDE)
        self._runner = open_runner(GUIDE, spec=SPEC, cache_dir=cache)
        self._runner.warm(background=False)
        self._outputs: queue.Queue[list[Output]] = queue.Queue()
        fatal: list[BaseException] = []
        self._loop = EngineLoop(
            self._runner, self._tokenizer.token_bytes, spec=SPEC, emit=self._outputs.put, on_fatal=fatal.append
        )
        self._loop.start()

    def close(self) -> None:
        self._loop.close()
        self._runner.close()

    def answer(self, conversations: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        """The greedy answer to each conversation, all in one batch."""
        assert self._tokenizer.chat is not None
        for index, messages in enumerate(conversations):
            prompt = self._tokenizer.encode(self._tokenizer.chat.render(messages), special=False)
            self._loop.submit(Job(f"{index}", [prompt], Sampling(temperature=0.0, max_tokens=96), 1))
        texts, open_ = [""] * len(conversations), len(conversations)
        while open_:
            for output in self._outputs.get(timeout=120):
                if isinstance(output, Delta):
                    texts[int(output.request_id)] += output.text
                elif isinstance(output, Failed):
                    raise output.refusal
                elif isinstance(output, Ended):
                    open_ -= 1
        return texts


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guide]:
    guide = Guide(tmp_path_factory.mktemp("programs"))
    yield guide
    guide.close()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_guide_answers_at_least_36_of_40_questions(guide: Guide) -> None:
    questions = _questions()
    assert len(questions) == 40
    answers = guide.answer([[_user(one.ask)] for one in questions])
    missed = [
        f"{one.ask} → {answer}"
        for one, answer in zip(questions, answers, strict=True)
        if not re.search(one.fact, answer)
    ]
    print(f"{40 - len(missed)} of 40", *missed, sep="\n")
    assert len(missed) <= 4, missed


def test_the_guide_answers_what_the_page_suggests_to_ask(guide: Guide) -> None:
    facts = {
        "What is Baseload?": "OpenAI-compatible",
        "How do I scale a model to zero?": "min_replicas = 0",
        "How do I add a model?": "baseload models add",
        "What happens if a worker crashes?": "retried",
    }
    page = (files("baseload") / "web" / "static" / "page.js").read_text()
    ideas = re.search(r"^const IDEAS = (\[.*\]);$", page, re.MULTILINE)
    assert ideas
    assert msgspec.json.decode(ideas[1]) == list(facts)
    answers = guide.answer([[_user(question)] for question in facts])
    assert [fact for fact, answer in zip(facts.values(), answers, strict=True) if fact not in answer] == []


def test_the_guide_answers_within_a_conversation_and_under_a_system_message(guide: Guide) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        _user("How do I scale a model to zero?"),
        {"role": "assistant", "content": "Set scaling.min_replicas = 0, which is the default."},
        _user("how do i create an api key"),
    ]
    upper = [_user("HOW DO I CREATE AN API KEY?")]
    first, second = guide.answer([messages, upper])
    assert "baseload keys create" in first
    assert "baseload keys create" in second


def test_the_questions_asked_were_not_trained_on() -> None:
    trained = {
        _plain(way)
        for path in sorted(DOCS.glob("*.md"))
        for pair in parse_guide(path)
        for pattern in pair.patterns
        for way in expand(pattern)
    }
    assert len(trained) > 10_000
    asked = [one.ask for one in _questions()] + [line.split("\t")[0] for line in HELD_OUT.read_text().splitlines()]
    assert [ask for ask in asked if _plain(ask) in trained] == []


def test_every_expected_fact_stands_in_the_guide() -> None:
    answers = [pair.answer for path in sorted(DOCS.glob("*.md")) for pair in parse_guide(path)]
    assert [one.fact for one in _questions() if not any(re.search(one.fact, answer) for answer in answers)] == []


def test_the_guide_is_small() -> None:
    assert sum(path.stat().st_size for path in GUIDE.iterdir()) <= 10_000_000


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()
