"""OpenAI's answers as bytes: whole responses, stream chunks, usage, and the list of models.

Chunks are JSON; `sse` wraps one into a server-sent event, and `DONE` ends a stream.
"""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(Struct, frozen=True):
    """The part of the prompt found in the prefix cache."""

    cached_tokens: int = 0


class Usage(Struct, frozen=True):
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class Phases(Struct, frozen=True):
    """Our vendor field "baseload" beside usage: where the request's time in the worker went."""

    queue_ns: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0


class TopLogprob(Struct, frozen=True):
    """One likely token at a position. `bytes` are the token's bytes as integers."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Struct, frozen=True):
    """The chosen token at a position, with the likeliest beside it."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: Sequence[TopLogprob] = ()


class ChatLogprobs(Struct, frozen=True):
    """`choices[].logprobs` of a chat answer."""

    content: Sequence[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True):
    """`choices[].logprobs` of a text completion: parallel lists over its tokens."""

    tokens: Sequence[str]
    token_logprobs: Sequence[float | None]
    top_logprobs: Sequence[dict[str, float]] | None
    text_offset: Sequence[int]


class FunctionCall(Struct, frozen=True):
    """What is called: `arguments` is a JSON object, as text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """One call in an answer; `index` only in a stream."""

    id: str
    function: FunctionCall
    type: str = "function"
    index: int | UnsetType = UNSET


class ChatMessageOut(Struct, frozen=True):
    """The assistant's message."""

    content: str | None
    role: str = "assistant"
    refusal: str | None = None
    tool_calls: Sequence[ToolCall] | UnsetType = UNSET


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds: the role in the first, text in the others, nothing in the last."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: Sequence[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One choice of a chat answer: `message` in a whole answer, `delta` in a chunk."""

    index: int = 0
    message: ChatMessageOut | UnsetType = UNSET
    delta: ChatDelta | UnsetType = UNSET
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class CompletionChoice(Struct, frozen=True):
    """One choice of a text completion, whole or in a chunk."""

    index: int = 0
    text: str = ""
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class _Answer(Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: Sequence[ChatChoice] | Sequence[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    baseload: Phases | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET


class ModelCard(Struct, frozen=True):
    """One model of `GET /v1/models`. `max_model_len` is vLLM's name for the context; absent where unknown."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "baseload"
    max_model_len: int | UnsetType = UNSET


class _ModelList(Struct, frozen=True):
    data: Sequence[ModelCard]
    object: str = "list"


_encoder = msgspec.json.Encoder()


def usage(*, prompt: int, completion: int, cached: int = 0) -> Usage:
    """The usage of one request; `cached` is the part of `prompt` found in the prefix cache."""
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))


class Letterhead(Struct, frozen=True):
    """What an answer and each of its chunks say of themselves. `created` is in seconds since 1970."""

    is_chat: bool
    answer_id: str
    created: int
    model: str
    service_tier: str = ""  # "": not told

    def answer(
        self,
        choices: Sequence[ChatChoice] | Sequence[CompletionChoice],
        usage: Usage,
        *,
        baseload: Phases | None = None,
    ) -> bytes:
        """A whole answer, as JSON."""
        return self._encoded("chat.completion" if self.is_chat else "text_completion", choices, usage, baseload)

    def chunk(
        self,
        choices: Sequence[ChatChoice] | Sequence[CompletionChoice],
        usage: Usage | None = None,
        *,
        baseload: Phases | None = None,
    ) -> bytes:
        """One chunk of a stream, as JSON. The usage chunk has no choices."""
        return self._encoded("chat.completion.chunk" if self.is_chat else "text_completion", choices, usage, baseload)

    def _encoded(
        self,
        kind: str,
        choices: Sequence[ChatChoice] | Sequence[CompletionChoice],
        usage: Usage | None,
        baseload: Phases | None,
    ) -> bytes:
        answer = _Answer(
            self.answer_id,
            kind,
            self.created,
            self.model,
            choices,
            usage or UNSET,
            baseload or UNSET,
            UNSET,
            self.service_tier or UNSET,
        )
        return _encoder.encode(answer)


def model_card(name: str, *, created: int, context_tokens: int = 0) -> bytes:
    """One model, as JSON."""
    return _encoder.encode(ModelCard(name, created, max_model_len=context_tokens or UNSET))


def model_list(models: Sequence[tuple[str, int, int]]) -> bytes:
    """The list of models, from (name, created in seconds, context in tokens or 0)."""
    cards = [ModelCard(name, created, max_model_len=context or UNSET) for name, created, context in models]
    return _encoder.encode(_ModelList(cards))


def sse(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"
