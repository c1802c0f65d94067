import json
import re
from pathlib import Path

import numpy as np
import pytest

from baseload.domain.errors import Reason, Refusal
from baseload.domain.sampling import Grammar, GrammarKind, Sampling
from baseload.engine.sampling import RowSampler, SamplingFailed
from baseload.engine.structured import GrammarCompiler, GrammarState
from baseload.engine.tokenizer import TextTokenizer

EOS = 1
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Größe", "b"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    return TextTokenizer.open(tiny_model)


@pytest.fixture(scope="module")
def compiler(tokenizer: TextTokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.to_json, vocab_size=tokenizer.vocab_size, eos_token_ids=(EOS,))


def generate(
    compiler: GrammarCompiler, tokenizer: TextTokenizer, grammar: Grammar, seed: int, most: int = 400
) -> str:
    """Sample under the grammar from noise that likes neither brackets nor the end."""
    state = compiler.compile(grammar)
    sampler = RowSampler(Sampling(temperature=1.5), seed=seed, mask=state)
    random = np.random.default_rng(seed)
    raw = b""
    for _ in range(most):
        logits = random.normal(size=tokenizer.vocab_size + 8).astype(np.float32)  # padded columns are never chosen
        logits[tokenizer.vocab_size :] += 50.0
        token = sampler.choose(logits).token
        raw += tokenizer.token_bytes(token)
        if token == EOS or state.complete:
            return raw.decode()
    raise AssertionError(f"no end after {most} tokens: {raw!r}")


@pytest.mark.parametrize("seed", range(8))
def test_json_schema(compiler: GrammarCompiler, tokenizer: TextTokenizer, seed: int) -> None:
    text = generate(compiler, tokenizer, Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)), seed)
    value = json.loads(text)
    assert list(value) == ["name", "age"]
    assert value["name"] in ("Größe", "b")
    assert 0 <= value["age"] <= 99


def test_json_object(compiler: GrammarCompiler, tokenizer: TextTokenizer) -> None:
    for seed in range(8):
        assert isinstance(
            json.loads(generate(compiler, tokenizer, Grammar(GrammarKind.JSON_OBJECT), seed, 3000)), dict
        )


def test_regex_and_lark(compiler: GrammarCompiler, tokenizer: TextTokenizer) -> None:
    for seed in range(8):
        text = generate(compiler, tokenizer, Grammar(GrammarKind.REGEX, r"[ab]{2}-[0-9]+!"), seed)
        assert re.fullmatch(r"[ab]{2}-[0-9]+!", text)
        text = generate(compiler, tokenizer, Grammar(GrammarKind.LARK, 'start: ("yes" | "no") "."'), seed)
        assert text in ("yes.", "no.")


def test_choices_of_a_request_go_their_own_ways(compiler: GrammarCompiler, tokenizer: TextTokenizer) -> None:
    state = compiler.compile(Grammar(GrammarKind.REGEX, "ab|cd"))
    other = state.copy()
    a, c = (tokenizer.encode(letter, special=False)[0] for letter in "ac")
    state.accept(a)
    other.accept(c)
    allowed = [np.flatnonzero(each.allowed(tokenizer.vocab_size)) for each in (state, other)]
    assert [[tokenizer.token_bytes(int(i)) for i in ids] for ids in allowed] == [[b"b"], [b"d"]]


@pytest.mark.parametrize(
    ("grammar", "param"),
    [
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}'), "response_format"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object", "$ref": "#/$defs/none"}'), "response_format"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"$ref": "#"}'), "response_format"),  # noticed at the first mask
        (Grammar(GrammarKind.JSON_SCHEMA, '{"items": ' * 5000 + "{}" + "}" * 5000), "response_format"),
        (Grammar(GrammarKind.REGEX, "(["), "structured_outputs.regex"),
        (Grammar(GrammarKind.LARK, "start: nothing"), "structured_outputs.grammar"),
    ],
    ids=["unknown type", "no such reference", "endless", "deep", "regex", "lark"],
)
def test_a_bad_grammar_is_refused(compiler: GrammarCompiler, grammar: Grammar, param: str) -> None:
    with pytest.raises(Refusal) as caught:
        compiler.compile(grammar)
    assert (caught.value.reason, caught.value.param) == (Reason.BAD_REQUEST, param)
    assert "x-guidance" not in caught.value.message  # the matcher's inner state is not the client's affair


def optional_properties(count: int) -> Grammar:
    properties = {f"field_{n}": {"type": "string"} for n in range(count)}
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"type": "object", "properties": properties}))


def begin_an_object(state: GrammarState, tokenizer: TextTokenizer) -> None:
    for piece in ("{", '"'):
        state.allowed(tokenizer.vocab_size)
        state.accept(tokenizer.encode(piece, special=False)[0])
    state.allowed(tokenizer.vocab_size)


def test_a_schema_of_a_thousand_optional_properties_is_followed(
    compiler: GrammarCompiler, tokenizer: TextTokenizer
) -> None:
    begin_an_object(compiler.compile(optional_properties(1000)), tokenizer)


def test_a_grammar_too_large_to_follow_is_the_clients_fault(
    compiler: GrammarCompiler, tokenizer: TextTokenizer
) -> None:
    state = compiler.compile(optional_properties(3000))  # what it costs is only seen within the object
    with pytest.raises(SamplingFailed, match="fewer optional properties") as caught:
        begin_an_object(state.copy(), tokenizer)
    assert (caught.value.reason, caught.value.param) == (Reason.BAD_REQUEST, "response_format")
    other = compiler.compile(optional_properties(3000), param="tools")
    with pytest.raises(SamplingFailed) as caught:
        begin_an_object(other, tokenizer)
    assert caught.value.param == "tools"


def test_a_token_against_the_grammar_is_ours(compiler: GrammarCompiler, tokenizer: TextTokenizer) -> None:
    state = compiler.compile(Grammar(GrammarKind.REGEX, "ab"))
    with pytest.raises(SamplingFailed) as caught:
        state.accept(tokenizer.encode("b", special=False)[0])
    assert caught.value.reason is Reason.WORKER_ERROR
