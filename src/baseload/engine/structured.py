"""Structured output: a grammar (JSON, JSON Schema, Lark or a regular expression) as masks over the next token."""

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baseload.domain.errors import Reason, Refusal
from baseload.domain.sampling import Grammar, GrammarKind
from baseload.engine.sampling import SamplingFailed

_PARAM = {
    GrammarKind.JSON_OBJECT: "response_format",
    GrammarKind.JSON_SCHEMA: "response_format",
    GrammarKind.LARK: "structured_outputs.grammar",
    GrammarKind.REGEX: "structured_outputs.regex",
}
_DEAD_END = "NoExtension"  # the matcher's word for a place at which no text can go on
_SIMPLER = "Make it simpler: fewer optional properties (list them under 'required'), alternatives or repetitions."
_MOST_ITEMS = 8192  # open alternatives at one place; 2,000 optional properties make 8,000, and some 4 ms a token
_WHITESPACE = r"[ \n]{1,24}"  # as people write JSON, but no model can spend its tokens on blanks for ever


class GrammarState:
    """Where one sequence stands in its grammar."""

    __slots__ = ("_bits", "_matcher", "_param")

    def __init__(self, matcher: Any, vocab_size: int, *, param: str) -> None:
        """`param`: the request's field that holds the grammar, for errors."""
        self._matcher = matcher
        self._param = param
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """One boolean per token; columns beyond the tokenizer's vocabulary never are. Raises SamplingFailed."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise self._unfollowable()
        flags = np.unpackbits(self._bits.view(np.uint8), bitorder="little").view(np.bool_)
        if len(flags) >= vocab_size:
            return flags[:vocab_size]
        return np.concatenate([flags, np.zeros(vocab_size - len(flags), np.bool_)])

    def accept(self, token: int) -> None:
        """The token was chosen under the mask. Raises SamplingFailed: the client's fault where it asks too much."""
        if self._matcher.consume_token(token):
            return
        if self._bits[token // 32] >> token % 32 & 1:  # the grammar allows it, and yet cannot go on
            raise self._unfollowable()
        raise SamplingFailed(f"The grammar failed: {_in_short(self._matcher.get_error())}")

    @property
    def complete(self) -> bool:
        """Nothing may follow any more: the text is a whole sentence of the grammar."""
        return bool(self._matcher.is_stopped())

    def copy(self) -> "GrammarState":
        """The same state, for another choice of the request."""
        return GrammarState(self._matcher.deep_copy(), len(self._bits) * 32, param=self._param)

    def _unfollowable(self) -> SamplingFailed:
        """The client's grammar asks for more than can be done."""
        detail = _in_short(self._matcher.get_error())
        if detail.startswith(_DEAD_END):
            detail, hint = "no text satisfies it", "Change it so that a text can end."
        else:
            hint = _SIMPLER
        message = f"The grammar cannot be followed: {detail}."
        return SamplingFailed(message, hint=hint, reason=Reason.BAD_REQUEST, param=self._param)


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Thread-safe; what it needs is built at the first use (up to a second)."""

    def __init__(self, tokenizer_json: Callable[[], str], *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def compile(self, grammar: Grammar, *, param: str = "") -> GrammarState:
        """The start state. Raises Refusal naming what is wrong with the grammar.

        `param`: the request's field that it came from, where that is not the usual one of its kind.
        """
        import llguidance  # noqa: PLC0415  # heavy, and needed by few requests

        matcher_class = llguidance.LLMatcher
        try:
            text = _grammar_text(matcher_class, grammar)
        except ValueError as error:
            raise _bad(grammar, str(error)) from error
        except RecursionError:
            raise _bad(grammar, "it is nested too deeply") from None
        with self._lock:
            if self._tokenizer is None:
                eos = self._eos or None
                self._tokenizer = llguidance.LLTokenizer(self._json(), n_vocab=self._vocab_size, eos_token=eos)
        complaint = matcher_class.validate_grammar(text, self._tokenizer)
        if complaint and not complaint.startswith("WARNING"):
            raise _bad(grammar, complaint)
        limits = llguidance.LLParserLimits(max_items_in_row=_MOST_ITEMS)
        matcher = matcher_class(self._tokenizer, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise _bad(grammar, matcher.get_error())
        start = GrammarState(matcher, self._tokenizer.vocab_size, param=param or _PARAM[grammar.kind])
        try:  # a grammar that no text satisfies is only noticed at its first mask
            start.copy().allowed(self._vocab_size)
        except SamplingFailed as failure:
            raise Refusal(failure.reason, failure.message, hint=failure.hint, param=failure.param) from failure
        return start


def _grammar_text(matcher_class: Any, grammar: Grammar) -> str:
    text: str
    match grammar.kind:
        case GrammarKind.LARK:
            text = matcher_class.grammar_from_lark(grammar.text)
        case GrammarKind.REGEX:
            text = matcher_class.grammar_from_regex(grammar.text)
        case GrammarKind.JSON_OBJECT | GrammarKind.JSON_SCHEMA:
            schema = grammar.text if grammar.kind is GrammarKind.JSON_SCHEMA else '{"type": "object"}'
            options = {"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE}
            text = matcher_class.grammar_from_json_schema(json.loads(schema), overrides=options)
    return text


def _in_short(error: str) -> str:
    """Without the matcher's state, which quotes the client's grammar and the text so far."""
    return error.strip().partition("\n")[0][:200]


def _bad(grammar: Grammar, detail: str) -> Refusal:
    detail = detail.strip()[:1000]
    return Refusal(
        Reason.BAD_REQUEST, f"The {grammar.kind} grammar cannot be used: {detail}", param=_PARAM[grammar.kind]
    )
