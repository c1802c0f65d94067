"""Tokenizer, chat template and loss weights."""

import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baseload.domain.errors import DataError
from baseload.train.data import Document, Message
from baseload.train.tokens import (
    BOS,
    END,
    ChatEncoder,
    chat_template,
    open_encoder,
    train_tokenizer,
    write_tokenizer,
)

TEXTS = ["How do I scale a model to zero?", "Set min_replicas to 0 and wait.", "You are terse."] * 5
CHAT = Document(
    messages=(
        Message("system", "You are terse."),
        Message("user", " How do I SCALE? "),
        Message("assistant", "Set it to 0."),
        Message("user", "And back?"),
        Message("assistant", "Set it to 1."),
    )
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=320)


def _encoder(tokenizer: Tokenizer, **other: object) -> ChatEncoder:
    return ChatEncoder(tokenizer, template=chat_template(lowercase_user=True), bos=BOS, eos=END, **other)  # type: ignore[arg-type]


SMALLEST = functools.cache(lambda: train_tokenizer(TEXTS[:3], vocab_size=264))


@given(st.text())
def test_every_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = SMALLEST()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == BOS + text


def test_training_a_tokenizer_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, vocab_size=300).to_str() == train_tokenizer(TEXTS, vocab_size=300).to_str()


def test_only_the_assistants_words_and_their_ends_are_learnt(tokenizer: Tokenizer) -> None:
    piece = _encoder(tokenizer).encode(CHAT)
    learnt = [token for token, weight in zip(piece.tokens, piece.weights, strict=True) if weight]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "Set it to 0.<|end|>Set it to 1.<|end|>"
    assert set(piece.weights) == {0.0, 1.0}
    whole = tokenizer.decode(list(piece.tokens), skip_special_tokens=False)
    assert whole.startswith("<|begin|><|system|>You are terse.<|end|><|user|>how do i scale?<|end|><|assistant|>Set")


def test_a_short_lesson_ends_within_the_last_answer(tokenizer: Tokenizer) -> None:
    encoder = _encoder(tokenizer, prompt_weight=0.25)
    whole = encoder.encode(CHAT)
    short = encoder.encode(Document(messages=CHAT.messages, last_tokens=2))
    assert whole.tokens[: len(short.tokens)] == short.tokens
    assert tokenizer.decode(list(short.tokens), skip_special_tokens=False).count("<|assistant|>") == 2
    assert short.weights[-2:] == (1.0, 1.0)
    assert short.weights[-3] == 0.25


def test_only_the_last_answer_is_learnt_when_asked() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=320, special=["<|topic-0|>"])
    messages = (*CHAT.messages[:-1], Message("assistant", "<|topic-0|>Set it to 1."))
    piece = _encoder(tokenizer).encode(Document(messages=messages, last_only=True))
    learnt = [token for token, weight in zip(piece.tokens, piece.weights, strict=True) if weight]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "<|topic-0|>Set it to 1.<|end|>"
    assert tokenizer.decode(learnt) == "Set it to 1."


def test_running_text_is_learnt_throughout(tokenizer: Tokenizer) -> None:
    piece = _encoder(tokenizer).encode(Document(text="Set it."))
    assert set(piece.weights) == {1.0}
    assert tokenizer.decode(list(piece.tokens), skip_special_tokens=False) == "<|begin|>Set it.<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Tokenizer) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="earlier turns differently"):
        ChatEncoder(tokenizer, template=template, bos=BOS, eos=END).encode(CHAT)


def test_a_template_may_show_the_last_question_only(tokenizer: Tokenizer) -> None:
    template = chat_template(lowercase_user=True, last_question_only=True)
    encoder = ChatEncoder(tokenizer, template=template, bos=BOS, eos=END)
    asked = Document(messages=CHAT.messages[:-1])
    assert encoder.render(asked, open_answer=True) == "<|begin|><|user|>and back?<|end|><|assistant|>"
    no_user = Document(messages=CHAT.messages[:1])
    assert encoder.render(no_user, open_answer=True) == "<|begin|><|system|>You are terse.<|end|><|assistant|>"


def test_a_written_tokenizer_is_read_back_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, tokenizer, template=chat_template(lowercase_user=True), max_context=64)
    read, encoder = open_encoder(tmp_path, prompt_weight=0.0)
    assert read.to_str() == tokenizer.to_str()
    assert encoder.encode(CHAT) == _encoder(tokenizer).encode(CHAT)
