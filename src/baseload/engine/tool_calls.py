"""Calls of functions in a model's text: found as it comes, and grammars that leave a model nothing but to call.

Two forms are understood, told by the chat template that teaches them:

    hermes   <tool_call>{"name": …, "arguments": {…}}</tool_call>, once or more, perhaps after text (Qwen, Hermes)
    llama    {"name": …, "parameters": {…}} as the whole answer (Llama 3.1 and later); several follow each other

What is not a whole call of a function that was offered stays text.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_WHITESPACE = r"[ \n]{0,24}"  # as models write JSON, but none can spend its tokens on blanks for ever


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # Python would read NaN and the infinities


_decoder = json.JSONDecoder(parse_constant=_refuse)


class ToolForm(StrEnum):
    """How a model writes a call."""

    HERMES = "hermes"
    LLAMA = "llama"


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `arguments` is a JSON object, as text."""

    name: str
    arguments: str


def form_of(template: str) -> ToolForm | None:
    """The form that a chat template with `tools` teaches; None where it is none of ours."""
    if OPEN in template:
        return ToolForm.HERMES
    if '"parameters"' in template and ("python_tag" in template or "ipython" in template):
        return ToolForm.LLAMA
    return None


class CallReader:
    """One answer's text, piece by piece, to text and calls. `feed` and `end` give what can be told so far."""

    def __init__(self, form: ToolForm, names: Collection[str], *, most: int = 1 << 30) -> None:
        """`names`: the functions that may be called. `most`: further calls are dropped."""
        self._form = form
        self._names = frozenset(names)
        self._most = most
        self._held = ""  # text that may still become a call
        self._searched = 0  # of it, without finding the end
        self._is_calling = False
        self._is_plain = False  # llama: the answer did not begin as a call
        self.calls = 0

    def feed(self, text: str) -> list[str | Call]:
        """More of the answer."""
        if self._is_plain:
            return [text] if text else []
        self._held += text
        return self._hermes() if self._form is ToolForm.HERMES else self._llama()

    def end(self) -> list[str | Call]:
        """The answer is over: what was held is a call, or text after all."""
        held, self._held = self._held, ""
        if self._form is ToolForm.LLAMA:
            calls = self._sequence(held)
            return self._kept(calls) if calls else [held] if held else []
        if not self._is_calling:
            return [held] if held and not (self.calls and held.isspace()) else []
        call = self._one(held)  # the end came before its mark
        return self._kept([call]) if call is not None else [OPEN + held]

    def _hermes(self) -> list[str | Call]:
        found: list[str | Call] = []
        while True:
            if not self._is_calling:
                at = self._held.find(OPEN)
                cut = _certain(self._held) if at < 0 else at
                text, rest = self._held[:cut], self._held[cut:]
                text = text.rstrip() if at >= 0 else text
                if text and not (self.calls and text.isspace()):
                    found.append(text)
                if at < 0:
                    self._held = rest
                    return found
                self._held, self._is_calling, self._searched = rest[len(OPEN) :], True, 0
            at = self._held.find(CLOSE, max(0, self._searched - len(CLOSE)))
            if at < 0:
                self._searched = len(self._held)
                return found
            body, self._held, self._is_calling = self._held[:at], self._held[at + len(CLOSE) :], False
            call = self._one(body)
            found += self._kept([call]) if call is not None else [OPEN + body + CLOSE]

    def _llama(self) -> list[str | Call]:
        start = self._held.lstrip()
        if not start or start.startswith(("{", _PYTHON_TAG)) or _PYTHON_TAG.startswith(start):
            return []
        text, self._held, self._is_plain = self._held, "", True
        return [text]

    def _sequence(self, text: str) -> list[Call]:
        """Calls that follow each other, with blanks or semicolons between; none where anything else is there."""
        text = text.strip().removeprefix(_PYTHON_TAG).strip()
        calls: list[Call] = []
        while text:
            try:
                value, end = _decoder.raw_decode(text)
                call = self._call(value)
            except (ValueError, RecursionError):
                return []
            if call is None:
                return []
            calls.append(call)
            text = text[end:].lstrip(" \t\r\n;")
        return calls

    def _one(self, text: str) -> Call | None:
        try:
            return self._call(_decoder.decode(text))
        except (ValueError, RecursionError):
            return None

    def _call(self, value: object) -> Call | None:
        """Raises ValueError where the arguments are a text that is not JSON."""
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters"))
        if isinstance(arguments, str):
            arguments = _decoder.decode(arguments)
        if not isinstance(arguments, dict | None):
            return None
        return Call(name, json.dumps(arguments or {}, ensure_ascii=False))

    def _kept(self, calls: Sequence[Call]) -> list[str | Call]:
        kept = list(calls[: max(0, self._most - self.calls)])
        self.calls += len(kept)
        return list(kept)


def _certain(text: str) -> int:
    """How much of the text can be no part of a call: all but blanks at its end and what may be a begun OPEN."""
    begun = next((n for n in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:n])), 0)
    return len(text[: len(text) - begun].rstrip())


def call_grammar(form: ToolForm, functions: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Lark for llguidance: exactly one call of one of these functions (name → JSON Schema of its arguments)."""
    key = "arguments" if form is ToolForm.HERMES else "parameters"
    shapes = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, key: {"type": "object", **(schema or {})}},
            "required": ["name", key],
            "additionalProperties": False,
        }
        for name, schema in functions.items()
    ]
    options = {"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE}
    schema = {"x-guidance": options, **(shapes[0] if len(shapes) == 1 else {"anyOf": shapes})}
    body = f"call: %json {json.dumps(schema)}\n"
    if form is ToolForm.LLAMA:
        return f"start: call\n{body}"
    return f'start: "{OPEN}\\n" call "\\n{CLOSE}"\n{body}'
