"""Calls in a model's text: the same however it is cut, and only what is a whole call of an offered function."""

import itertools
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from baseload.domain.errors import Refusal
from baseload.domain.sampling import Grammar, GrammarKind
from baseload.engine.chat_template import ChatTemplate
from baseload.engine.structured import GrammarCompiler
from baseload.engine.tokenizer import TextTokenizer
from baseload.engine.tool_calls import Call, CallReader, ToolForm, call_grammar, form_of

NAMES = ("weather", "add")
PARIS = Call("weather", '{"city": "Paris"}')
ADD = Call("add", '{"a": 1, "b": [2, {"c": "</x>"}]}')
P = '{"name": "weather", "arguments": {"city": "Paris"}}'
A = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "</x>"}]}}'
HERMES = {
    f"<tool_call>\n{P}\n</tool_call>": [PARIS],
    f"<tool_call>{P}</tool_call>\n<tool_call>{A}</tool_call>\n": [PARIS, ADD],
    f"I will look.\n\n<tool_call>\n{P}\n</tool_call>": ["I will look.", PARIS],
    f"<tool_call>{P}</tool_call> done": [PARIS, " done"],
    f"<tool_call>\n{P}": [PARIS],  # the model stopped before the end mark
    "plain <b>text</b>, a < b, <tool": ["plain <b>text</b>, a < b, <tool"],
    "ends with blanks \n": ["ends with blanks \n"],
    "<tool_call>not json</tool_call>": ["<tool_call>not json</tool_call>"],
    "<tool_call>[1]</tool_call>": ["<tool_call>[1]</tool_call>"],
    '<tool_call>{"name": "rm", "arguments": {}}</tool_call>': [
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
    ],
    '<tool_call>{"name": "add", "arguments": [1]}</tool_call>': [
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'
    ],
    '<tool_call>{"name": ["add"]}</tool_call>': ['<tool_call>{"name": ["add"]}</tool_call>'],
    '<tool_call>{"name": "add"}</tool_call>': [Call("add", "{}")],
    '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>': [Call("add", '{"a": 1}')],
    '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>': [
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>'
    ],
    "<tool_call>{": ["<tool_call>{"],
    "": [],
}
LP = P.replace("arguments", "parameters")
LA = A.replace("arguments", "parameters")
LLAMA = {
    LP: [PARIS],
    f"\n {LP} ": [PARIS],
    f"<|python_tag|>{LP}": [PARIS],
    f"{LP}; {LA}": [PARIS, ADD],
    f"{LP}\n{LA}": [PARIS, ADD],
    "The weather is fine {today}.": ["The weather is fine {today}."],
    '{"answer": 42}': ['{"answer": 42}'],
    f"{LP} and more": [f"{LP} and more"],
    '{"name": "weather", "param': ['{"name": "weather", "param'],
    "<|pyth": ["<|pyth"],
    '{"name": "add", "parameters": "x"}': ['{"name": "add", "parameters": "x"}'],
    "": [],
}


def read(form: ToolForm, text: str, cuts: list[int], *, most: int = 9) -> list[str | Call]:
    """What is read, with pieces of text that follow each other joined."""
    reader = CallReader(form, NAMES, most=most)
    edges = [0, *cuts, len(text)]
    pieces = [piece for start, end in itertools.pairwise(edges) for piece in reader.feed(text[start:end])]
    joined: list[str | Call] = []
    for piece in pieces + reader.end():
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    assert reader.calls == sum(isinstance(piece, Call) for piece in joined)
    return joined


@pytest.mark.parametrize(("form", "cases"), [(ToolForm.HERMES, HERMES), (ToolForm.LLAMA, LLAMA)])
def test_any_cut_gives_the_same_text_and_calls(form: ToolForm, cases: dict[str, list[str | Call]]) -> None:
    for text, wanted in cases.items():
        assert read(form, text, []) == wanted, text
        assert read(form, text, list(range(1, len(text)))) == wanted, text
        for cut in range(1, len(text)):
            assert read(form, text, [cut]) == wanted, (text, cut)


def test_text_is_passed_on_as_soon_as_it_can_be_no_call() -> None:
    reader = CallReader(ToolForm.HERMES, NAMES)
    assert reader.feed("Hello") == ["Hello"]
    assert reader.feed(" wor") == [" wor"]
    assert reader.feed("ld <") == ["ld"]
    assert reader.feed("b>") == [" <b>"]
    assert reader.feed("<tool_cal") == []
    reader = CallReader(ToolForm.LLAMA, NAMES)
    assert reader.feed("The ") == ["The "]
    assert reader.feed("{") == ["{"]


def test_of_calls_beyond_the_most_none_is_told() -> None:
    text = "".join(f"<tool_call>{one}</tool_call>" for one in (P, A, P))
    assert read(ToolForm.HERMES, text, [], most=1) == [PARIS]
    assert read(ToolForm.LLAMA, f"{LP};{LA}", [], most=1) == [PARIS]


def test_deep_nesting_is_text() -> None:
    text = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    assert read(ToolForm.HERMES, text, []) == [text]
    assert read(ToolForm.LLAMA, '{"a":' * 50_000, []) == ['{"a":' * 50_000]


@pytest.mark.parametrize("form", list(ToolForm))
def test_a_demanded_call_can_be_nothing_else(form: ToolForm, tiny_model: Path) -> None:
    tokenizer = TextTokenizer.open(tiny_model)
    compiler = GrammarCompiler(tokenizer.to_json, vocab_size=tokenizer.vocab_size, eos_token_ids=[])
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    text = call_grammar(form, {"weather": {**city, "additionalProperties": False}, "add": None})
    start = compiler.compile(Grammar(GrammarKind.LARK, text))

    def accepts(answer: str) -> bool:
        state = start.copy()
        for token in tokenizer.encode(answer, special=False):
            if not state.allowed(tokenizer.vocab_size)[token]:
                return False
            state.accept(token)
        return state.complete or bool(state.allowed(tokenizer.vocab_size).sum() == 0) or form is ToolForm.LLAMA

    key, before, after = ("arguments", "<tool_call>\n", "\n</tool_call>") if form is ToolForm.HERMES else (
        "parameters", "", ""
    )  # fmt: skip
    good = before + json.dumps({"name": "weather", key: {"city": "the dog"}}) + after
    assert accepts(good)
    assert read(form, good, []) == [Call("weather", '{"city": "the dog"}')]
    for wrong in ("the dog", before + json.dumps({"name": "fox", key: {}}) + after,
                  before + json.dumps({"name": "weather", key: {"town": "x"}}) + after):  # fmt: skip
        assert not accepts(wrong)
    with pytest.raises(Refusal):
        compiler.compile(Grammar(GrammarKind.LARK, call_grammar(form, {"add": {"type": "nothing"}})))


def test_tags_are_text_even_where_the_tokenizer_calls_them_special() -> None:
    bare = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    bare.add_special_tokens(["<tool_call>", "</tool_call>", "<|end|>"])
    tokenizer = TextTokenizer(bare, chat=None)
    assert [tokenizer.token_bytes(token) for token in (1, 2, 3)] == [b"<tool_call>", b"</tool_call>", b""]


def test_the_form_is_told_by_the_template() -> None:
    hermes = "{% if tools %}<tools>{{ tools | tojson }}</tools> answer in <tool_call></tool_call>{% endif %}"
    llama = 'Environment: ipython {% for t in tools %}{"name": …, "parameters": …}{% endfor %}'
    for source, form in (
        (hermes, ToolForm.HERMES),
        (llama, ToolForm.LLAMA),
        ("{{ messages }}", None),
        ("{{ messages }} <tool_call>", None),  # it is never shown which functions there are
        ("{{ tools }}", None),
    ):
        assert ChatTemplate(source, variables={}).tool_form is form
    assert form_of(hermes) is ToolForm.HERMES
    both = ChatTemplate("plain {{ messages }}", variables={}, tool_source=hermes)
    assert both.tool_form is ToolForm.HERMES
    assert both.render([]).startswith("plain")
    assert '"f"' in both.render([], [{"name": "f"}])


def test_a_list_of_templates_has_one_for_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "<tool_call> {{ tools }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.open(tmp_path)
    assert template is not None
    assert template.tool_form is ToolForm.HERMES
    assert template.render([]) == "plain"
    assert template.render([], [{"x": 1}]).startswith("<tool_call> [{")
