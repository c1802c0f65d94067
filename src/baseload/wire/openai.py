"""OpenAI's chat and text completion requests: bytes to checked values, and values to sampling parameters.

`parse_chat` and `parse_completion` raise `Refusal` naming the field and its range. Parameters that only vLLM
knows have vLLM's names. Unknown fields are ignored, as clients send many. The answers are in `openai_answers`,
the errors in `openai_errors`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from baseload.domain.errors import Reason, Refusal
from baseload.domain.sampling import Grammar, GrammarKind, Sampling
from baseload.domain.work import Tier

TIER_HEADER = "x-baseload-service-tier"  # from the gateway to a worker: the key's class, where none was asked for
MOST_COMPLETIONS = 128  # of one request
MOST_TOOLS = 128
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions

_TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Stop = str | Annotated[list[str], Meta(max_length=16)]
_Temperature = Annotated[float, Meta(ge=0, le=2)]
_TopP = Annotated[float, Meta(gt=0, le=1)]
_TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
_MinP = Annotated[float, Meta(ge=0, le=1)]
_Count = Annotated[int, Meta(ge=1, le=16)]
_MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]

_ALLOWED = {
    "model": "the name of a model",
    "messages": "a non-empty list of messages, each with a role and a content",
    "prompt": "a string, a list of strings, a list of token ids, or a list of such lists (at most 128 prompts)",
    "temperature": "a number between 0 and 2",
    "top_p": "a number above 0 and at most 1",
    "top_k": "an integer of at least -1 (-1 or 0: off)",
    "min_p": "a number between 0 and 1",
    "seed": "an integer of 64 bits",
    "stop": "a string or a list of at most 16 strings",
    "stop_token_ids": "a list of at most 64 token ids",
    "max_tokens": "an integer of at least 1",
    "max_completion_tokens": "an integer of at least 1",
    "presence_penalty": "a number between -2 and 2",
    "frequency_penalty": "a number between -2 and 2",
    "logit_bias": "an object of token ids to numbers between -100 and 100 (at most 1024)",
    "n": "an integer between 1 and 16",
    "logprobs": "true or false",
    "top_logprobs": "an integer between 0 and 20",
    "stream": "true or false",
    "stream_options": 'an object such as {"include_usage": true}',
    "ignore_eos": "true or false",
    "service_tier": '"auto", "default", "flex" or "priority"',
    "response_format": 'an object with "type": "text", "json_object" or "json_schema"',
    "structured_outputs": "an object with one of json, regex, grammar, choice, json_object",
}
_COMPLETION_ALLOWED = {**_ALLOWED, "logprobs": "an integer between 0 and 5"}


class StreamOptions(Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool | None = None


class JsonSchema(Struct, frozen=True):
    """`response_format.json_schema`."""

    name: str = ""
    schema: msgspec.Raw | UnsetType = UNSET


class ResponseFormat(Struct, frozen=True):
    """`response_format`."""

    type: str
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct, frozen=True):
    """vLLM's `structured_outputs`: one of its fields. `json` is a schema, as an object or as text."""

    json: msgspec.Raw | UnsetType = UNSET
    regex: str | None = None
    grammar: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None


class ContentPart(Struct, frozen=True):
    """One part of a message. Only text is served."""

    type: str
    text: str = ""


class ChatMessage(Struct, frozen=True):
    """One message. `tool_calls` and `tool_call_id` are history from elsewhere, for the model's chat template."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join([part.text for part in self.content]) if self.content else ""


class ToolFunction(Struct, frozen=True):
    """A function that a model may call. `parameters` is a JSON Schema of its arguments."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True):
    """One of `tools`."""

    type: Literal["function"]
    function: ToolFunction


class _Common(Struct, frozen=True, kw_only=True):
    """Fields that both routes have."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: _Count | None = None
    max_tokens: _MaxTokens | None = None
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    seed: _Seed | None = None
    stop: _Stop | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[_TokenId, _Bias], Meta(max_length=1024)] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None
    # vLLM's names from here on
    top_k: _TopK | None = None
    min_p: _MinP | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[_TokenId], Meta(max_length=64)] | None = None
    guided_json: msgspec.Raw | UnsetType = UNSET
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def tier(self) -> Tier | None:
        """The class of service asked for; None: the key's own ("auto", which "scale" means here too, or nothing)."""
        return Tier(self.service_tier) if self.service_tier in ("flex", "default", "priority") else None

    @property
    def include_usage(self) -> bool:
        """Whether the client wants the usage chunk at the end of its stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(_Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: _MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens one completion may have; None: what the context leaves."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def offered(self) -> dict[str, ToolFunction]:
        """The functions that the model may call, by name; none where `tool_choice` is "none"."""
        if not self.tools or self.tool_choice == "none":
            return {}
        tools = msgspec.convert(self.tools, list[Tool])
        return {tool.function.name: tool.function for tool in tools}

    @property
    def demanded(self) -> tuple[str, ...]:
        """The functions of which one must be called: one that was named, or all; () where the model is free."""
        if isinstance(self.tool_choice, dict):
            return (str(self.tool_choice["function"]["name"]),)
        return tuple(self.offered) if self.tool_choice == "required" else ()


class CompletionRequest(_Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | _TokenId | list[_TokenId]]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @property
    def token_limit(self) -> int:
        """The most tokens one completion may have."""
        return self.max_tokens if self.max_tokens is not None else DEFAULT_COMPLETION_TOKENS

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (tuple(self.prompt),)  # type: ignore[arg-type]  # checked when it was parsed
        return tuple([item if isinstance(item, str) else tuple(item) for item in self.prompt])  # type: ignore[arg-type]


_chat_decoder = msgspec.json.Decoder(ChatRequest)
_completion_decoder = msgspec.json.Decoder(CompletionRequest)


def parse_chat(body: bytes) -> ChatRequest:
    """The checked request, or a `Refusal` that names the field at fault and what is allowed there."""
    request = _decode(_chat_decoder, body, _ALLOWED)
    _check_common(request)
    for at, message in enumerate(request.messages):
        if isinstance(message.content, list):
            for part_at, part in enumerate(message.content):
                if part.type != "text":
                    param = f"messages[{at}].content[{part_at}].type"
                    raise _bad(param, f"Content of type '{part.type}' is not served here; send text parts only.")
        elif message.content is None and message.role != "assistant":
            raise _bad(f"messages[{at}].content", f"A message of role '{message.role}' needs a content.")
    if request.top_logprobs and not request.logprobs:
        raise _bad("top_logprobs", "'top_logprobs' needs 'logprobs': true.")
    _check_tools(request)
    if request.functions and request.function_call != "none":
        raise _bad("functions", "'functions' is not supported; 'tools' is, which took its place.")
    if request.modalities is not None and request.modalities != ["text"]:
        raise _bad("modalities", "Only the modality 'text' is served here.")
    return request


def _check_tools(request: ChatRequest) -> None:
    choice = request.tool_choice
    if not request.tools or choice == "none":
        if choice not in (None, "none", "auto"):
            raise _bad("tool_choice", "'tool_choice' asks for a call, but 'tools' offers no function.")
        return
    if len(request.tools) > MOST_TOOLS:
        raise _bad("tools", f"At most {MOST_TOOLS} tools can be offered.")
    try:
        names = list(request.offered)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        where = f"tools{at.rstrip('`')}" if at else "tools"
        raise _bad("tools", f"'{where}' is wrong: {what}. Only functions with a name can be offered.") from None
    if len(names) != len(request.tools):
        raise _bad("tools", "Two functions of 'tools' have the same name.")
    if choice not in (None, "auto", "required"):
        function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            allowed = (
                '"none", "auto", "required", or {"type": "function", "function": {"name": …}} with one of \'tools\''
            )
            raise _bad("tool_choice", f"'tool_choice' must be {allowed}.")
    if _grammar(request) is not None:
        raise _bad("tools", "Ask for tools or for a structured output, not for both.")
    if request.logprobs:
        raise _bad("logprobs", "'logprobs' is not supported together with 'tools'.")


def parse_completion(body: bytes) -> CompletionRequest:
    """The checked request, or a `Refusal` that names the field at fault and what is allowed there."""
    request = _decode(_completion_decoder, body, _COMPLETION_ALLOWED)
    _check_common(request)
    if not isinstance(request.prompt, str):
        kinds = {type(item) for item in request.prompt}
        bound = MOST_COMPLETIONS if kinds != {int} else len(request.prompt)
        if len(kinds) != 1 or len(request.prompt) > bound or [] in request.prompt:
            raise _bad("prompt", f"'prompt' must be {_ALLOWED['prompt']}.")
        if len(request.prompts) * (request.n or 1) > MOST_COMPLETIONS:
            raise _bad("n", f"Prompts times 'n' must be at most {MOST_COMPLETIONS}.")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise _bad("best_of", "'best_of' other than 'n' is not supported.")
    if request.echo:
        raise _bad("echo", "'echo' is not supported yet.")
    if request.suffix:
        raise _bad("suffix", "'suffix' is not supported.")
    return request


_OPENAI = Sampling()


def to_sampling(request: ChatRequest | CompletionRequest, *, defaults: Sampling = _OPENAI) -> Sampling:
    """How the engine shall sample for this request; `defaults` says it where the request does not."""
    if isinstance(request, ChatRequest):
        logprobs, top_logprobs = bool(request.logprobs), request.top_logprobs or 0
    else:
        logprobs, top_logprobs = request.logprobs is not None, request.logprobs or 0
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Sampling(
        temperature=defaults.temperature if request.temperature is None else float(request.temperature),
        top_p=defaults.top_p if request.top_p is None else float(request.top_p),
        top_k=defaults.top_k if request.top_k is None else max(0, request.top_k),
        min_p=defaults.min_p if request.min_p is None else float(request.min_p),
        seed=request.seed,
        stop=tuple([text for text in stop if text]),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        max_tokens=request.token_limit,
        presence_penalty=float(request.presence_penalty or 0.0),
        frequency_penalty=float(request.frequency_penalty or 0.0),
        logit_bias=tuple(sorted((request.logit_bias or {}).items())),
        n=request.n or 1,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        ignore_eos=bool(request.ignore_eos),
        grammar=_grammar(request),
    )


def _grammar(request: _Common) -> Grammar | None:
    asked = [(param, grammar) for param, grammar in _grammars(request) if grammar is not None]
    if len(asked) > 1:
        names = ", ".join([param for param, _ in asked])
        raise _bad(asked[1][0], f"Ask for one structured output only, not for {names}.")
    return asked[0][1] if asked else None


def _grammars(request: _Common) -> list[tuple[str, Grammar | None]]:
    out = request.structured_outputs or StructuredOutputs()
    return [
        ("response_format", _from_response_format(request.response_format)),
        ("guided_json", _from_schema("guided_json", request.guided_json)),
        ("guided_regex", _from_text(GrammarKind.REGEX, request.guided_regex)),
        ("guided_grammar", _from_text(GrammarKind.LARK, request.guided_grammar)),
        ("guided_choice", _from_choice("guided_choice", request.guided_choice)),
        ("structured_outputs.json", _from_schema("structured_outputs.json", out.json)),
        ("structured_outputs.regex", _from_text(GrammarKind.REGEX, out.regex)),
        ("structured_outputs.grammar", _from_text(GrammarKind.LARK, out.grammar)),
        ("structured_outputs.choice", _from_choice("structured_outputs.choice", out.choice)),
        ("structured_outputs.json_object", Grammar(GrammarKind.JSON_OBJECT) if out.json_object else None),
    ]


def _from_response_format(asked: ResponseFormat | None) -> Grammar | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return Grammar(GrammarKind.JSON_OBJECT)
    if asked.type != "json_schema":
        raise _bad("response_format.type", f"'response_format' must be {_ALLOWED['response_format']}.")
    if asked.json_schema is None or asked.json_schema.schema is UNSET:
        raise _bad("response_format.json_schema", "'response_format.json_schema.schema' is missing.")
    return _from_schema("response_format.json_schema.schema", asked.json_schema.schema)


def _from_schema(param: str, raw: msgspec.Raw | UnsetType) -> Grammar | None:
    """A JSON Schema, given as an object or as a string that holds one."""
    if raw is UNSET:
        return None
    text = bytes(raw)
    if text == b"null":
        return None
    if text[:1] == b'"':
        text = msgspec.json.decode(text, type=str).encode()
    try:
        schema = msgspec.json.decode(text)
    except msgspec.DecodeError:
        schema = None
    if not isinstance(schema, dict):
        raise _bad(param, f"'{param}' must be a JSON Schema, as an object.")
    return Grammar(GrammarKind.JSON_SCHEMA, text.decode())


def _from_text(kind: GrammarKind, text: str | None) -> Grammar | None:
    return Grammar(kind, text) if text else None


def _from_choice(param: str, choices: Sequence[str] | None) -> Grammar | None:
    if choices is None:
        return None
    if not choices:
        raise _bad(param, f"'{param}' must be a non-empty list of strings.")
    return Grammar(GrammarKind.REGEX, "|".join([f"({re.escape(choice)})" for choice in choices]))


def _check_common(request: _Common) -> None:
    if not request.model:
        raise _bad("model", "'model' is empty. Name a model; GET /v1/models lists them.")
    if request.stream_options is not None and not request.stream:
        raise _bad("stream_options", "'stream_options' is only allowed with \"stream\": true.")
    guided = (request.guided_regex, request.guided_grammar, request.guided_choice, request.structured_outputs)
    if request.response_format is not None or request.guided_json is not UNSET or guided.count(None) < 4:
        _grammar(request)


_Parsed = TypeVar("_Parsed")


def _decode(decoder: msgspec.json.Decoder[_Parsed], body: bytes, ranges: Mapping[str, str]) -> _Parsed:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal_of(str(error), ranges) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(
            Reason.BAD_JSON, f"The body is not valid JSON: {error}.", hint="Send one JSON object."
        ) from None
    except RecursionError:
        raise Refusal(Reason.BAD_JSON, "The body is nested too deeply.") from None


_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key` in `)?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


def _refusal_of(text: str, ranges: Mapping[str, str]) -> Refusal:
    """msgspec's message, e.g. "Expected `float` <= 2.0 - at `$.temperature`", as a refusal with a param."""
    match = _AT.match(text)
    assert match is not None
    what, path = match["what"], (match["path"] or "").removesuffix("[...]")
    missing = _MISSING.search(what)
    if missing is not None:
        path = f"{path}.{missing['field']}" if path else missing["field"]
        return _bad(path, f"'{path}' is missing.")
    if not path:
        return Refusal(Reason.BAD_REQUEST, f"The body must be a JSON object: {what}.")
    root = re.split(r"[.\[]", path, maxsplit=1)[0]
    allowed = ranges.get(root) or what.replace("Expected", "of type").replace("`", "")
    return _bad(
        path,
        f"'{path}' must be {allowed}." if path == root else f"'{path}' is wrong: {what}. '{root}' must be {allowed}.",
    )


def _bad(param: str, message: str) -> Refusal:
    return Refusal(Reason.BAD_REQUEST, message, param=param)
