"""From a parsed request to a job for the engine: template, tokens, bounds, grammar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baseload.domain.errors import Reason, Refusal
from baseload.domain.sampling import Sampling
from baseload.domain.work import Tier
from baseload.engine.jobs import Job
from baseload.engine.structured import GrammarCompiler
from baseload.engine.tokenizer import TextTokenizer
from baseload.wire.openai import ChatMessage, ChatRequest, CompletionRequest, to_sampling


@dataclass(frozen=True, slots=True)
class Served:
    """The model as the routes see it."""

    name: str
    replica_id: str
    tokenizer: TextTokenizer
    grammars: GrammarCompiler
    vocab_size: int
    max_context: int
    capacity: int  # sequences that can be in the engine at once
    defaults: Sampling  # of requests that say nothing of sampling


def prepare(
    request: ChatRequest | CompletionRequest, *, served: Served, request_id: str, seed: int, tier: Tier = Tier.DEFAULT
) -> Job:
    """The job. Raises Refusal. Takes time in proportion to the prompt, and to the grammar if there is one."""
    sampling = to_sampling(request, defaults=served.defaults)
    _check_ids(sampling, served.vocab_size)
    if isinstance(request, ChatRequest):
        text = _chat_text(request.messages, served)
        fewest = served.tokenizer.fewest_tokens(text)
        if fewest >= served.max_context:  # refused at once: to encode megabytes takes seconds
            raise _too_long_chat(f"{fewest} tokens or more", served)
        prompts = [served.tokenizer.encode(text, special=False)]
    else:
        asked = request.token_limit or 1
        prompts = [_completion_tokens(prompt, asked, served) for prompt in request.prompts]
    for prompt in prompts:
        _check_length(len(prompt), request, served)
    if len(prompts) * sampling.n > served.capacity:
        raise Refusal(
            Reason.BAD_REQUEST,
            f"{len(prompts) * sampling.n} completions in one request are too many; at most {served.capacity} fit.",
            param="n",
        )
    grammar = served.grammars.compile(sampling.grammar) if sampling.grammar is not None else None
    seed = seed if sampling.seed is None else sampling.seed
    return Job(request_id, prompts, sampling, seed, grammar, tier=tier)


def chat_tokens(messages: Sequence[ChatMessage], served: Served) -> list[int]:
    """The prompt of a chat, as token ids."""
    return served.tokenizer.encode(_chat_text(messages, served), special=False)  # the template writes special tokens


def _chat_text(messages: Sequence[ChatMessage], served: Served) -> str:
    template = served.tokenizer.chat
    if template is None:
        raise Refusal(
            Reason.BAD_REQUEST,
            f"The model '{served.name}' has no chat template.",
            hint="Use /v1/completions, or add a chat_template.jinja to the model's directory.",
            param="messages",
        )
    return template.render([_plain(message) for message in messages])


def _plain(message: ChatMessage) -> dict[str, Any]:
    """The message as templates expect it: content as one string."""
    plain: dict[str, Any] = {"role": message.role, "content": message.text}
    for name in ("name", "tool_calls", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    return plain


def _completion_tokens(prompt: str | Sequence[int], asked: int, served: Served) -> list[int]:
    if isinstance(prompt, str):
        fewest = served.tokenizer.fewest_tokens(prompt)
        if fewest >= served.max_context:
            raise _too_long_prompt(f"{fewest} or more", f"{fewest + asked} tokens or more", asked, served)
        return served.tokenizer.encode(prompt, special=True)
    largest = max(prompt, default=0)
    if largest >= served.vocab_size:
        raise Refusal(
            Reason.BAD_REQUEST,
            f"The token id {largest} is outside this model's vocabulary of {served.vocab_size} tokens.",
            param="prompt",
        )
    return list(prompt)


def _check_length(tokens: int, request: ChatRequest | CompletionRequest, served: Served) -> None:
    is_chat = isinstance(request, ChatRequest)
    if not tokens:
        raise Refusal(Reason.BAD_REQUEST, "The prompt is empty.", param="messages" if is_chat else "prompt")
    if tokens + 1 <= served.max_context:
        return
    if isinstance(request, ChatRequest):
        raise _too_long_chat(f"{tokens} tokens", served)
    asked = request.token_limit or 1
    raise _too_long_prompt(f"{tokens}", f"{tokens + asked} tokens", asked, served)


def _too_long_chat(tokens: str, served: Served) -> Refusal:
    text = (
        f"This model's maximum context length is {served.max_context} tokens. However, your messages resulted in"
        f" {tokens}. Please reduce the length of the messages."
    )
    return Refusal(Reason.CONTEXT_TOO_LONG, text, param="messages")


def _too_long_prompt(tokens: str, total: str, asked: int, served: Served) -> Refusal:
    text = (
        f"This model's maximum context length is {served.max_context} tokens, however you requested {total}"
        f" ({tokens} in your prompt; {asked} for the completion). Please reduce your prompt; or completion length."
    )
    return Refusal(Reason.CONTEXT_TOO_LONG, text, param="prompt")


def _check_ids(sampling: Sampling, vocab_size: int) -> None:
    biased = [token for token, _ in sampling.logit_bias]
    for param, ids in (("logit_bias", biased), ("stop_token_ids", sampling.stop_token_ids)):
        wrong = [token for token in ids if not 0 <= token < vocab_size]
        if wrong:
            raise Refusal(
                Reason.BAD_REQUEST,
                f"The token id {wrong[0]} is outside this model's vocabulary of {vocab_size} tokens.",
                param=param,
            )
