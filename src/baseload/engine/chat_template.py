"""A model's chat template: messages to the prompt's text, by jinja2 in its sandbox.

The template comes from chat_template.jinja, chat_template.json or tokenizer_config.json, in that order, and is
given what Hugging Face templates expect: messages, add_generation_prompt, bos_token and the like, raise_exception,
strftime_now, a tojson that keeps non-ASCII letters, and loop controls.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baseload.domain.errors import ModelError, Reason, Refusal
from baseload.engine.tool_calls import ToolForm, form_of

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class _TemplateRefused(Exception):
    """The template itself called raise_exception."""


class ChatTemplate:
    """A compiled template with the model's special tokens. `tool_form`: how a model taught by it calls functions.

    None where it does not speak of `tools`, or teaches a form that is not understood here.
    """

    def __init__(
        self, source: str, *, variables: Mapping[str, str], where: str = "chat template", tool_source: str = ""
    ) -> None:
        """`tool_source`: another template for requests with tools, where the model has one."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
            self._with_tools = environment.from_string(tool_source) if tool_source else self._template
            undeclared = meta.find_undeclared_variables(environment.parse(tool_source or source))
        except jinja2.TemplateError as error:
            raise ModelError(f"The {where} is not valid: {error}") from error
        self._variables = dict(variables)
        self.tool_form: ToolForm | None = form_of(tool_source or source) if "tools" in undeclared else None

    @staticmethod
    def open(model_dir: Path) -> "ChatTemplate | None":
        """The directory's chat template; None where it has none. Raises ModelError."""
        config = _read_json(model_dir / "tokenizer_config.json")
        variables = {name: text for name in _SPECIAL if (text := _token_text(config.get(name))) is not None}
        path = model_dir / "chat_template.jinja"
        if path.is_file():
            return ChatTemplate(path.read_text(encoding="utf-8"), variables=variables, where=str(path))
        path = model_dir / "chat_template.json"
        source = _pick(_read_json(path).get("chat_template"))
        if source is None:
            path = model_dir / "tokenizer_config.json"
            source = _pick(config.get("chat_template"))
        if source is None:
            return None
        given = config.get("chat_template")
        named = _pick(given, "tool_use") if path.name == "tokenizer_config.json" and isinstance(given, list) else ""
        where = f"template in {path}"
        return ChatTemplate(source, variables=variables, where=where, tool_source=named or "")

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt for these messages, and functions to call. Raises Refusal with the template's complaint."""
        template = self._with_tools if tools else self._template
        offered = list(tools) or None
        try:
            return template.render(
                messages=list(messages), add_generation_prompt=True, tools=offered, documents=None, **self._variables
            )
        except _TemplateRefused as error:
            raise Refusal(Reason.BAD_REQUEST, f"The model's chat template: {error}", param="messages") from error
        except Exception as error:  # a template may fail in any way on messages it does not expect
            message = f"The model's chat template failed on these messages: {error}"
            raise Refusal(Reason.BAD_REQUEST, message, param="messages") from error


def _pick(template: object, name: str = "default") -> str | None:
    """One template, or the one of this name of a list of named templates; for the default one any will do."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get(name, next(iter(named.values()), None) if name == "default" else None)
    return template if isinstance(template, str) else None


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _TemplateRefused(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)
