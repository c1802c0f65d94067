"""From a parsed request to a job for the engine: template, tokens, bounds, grammar."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baseload.domain.errors import Reason, Refusal
from baseload.domain.sampling import Grammar, GrammarKind, Sampling
from baseload.domain.work import Tier
from baseload.engine.jobs import Job
from baseload.engine.structured import GrammarCompiler, GrammarState
from baseload.engine.tokenizer import TextTokenizer
from baseload.engine.tool_calls import ToolForm, call_grammar
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
    grammar_text = sampling.grammar
    if isinstance(request, ChatRequest):
        if request.offered:
            form = tool_form(served)
            if request.demanded:
                grammar_text = _demanded(request, form)
        text = _chat_text(request.messages, served, request.tools if request.offered else None)
        if fewest := _surely_too_long(text, served):
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
    grammar = _compile(grammar_text, served, is_call=grammar_text is not sampling.grammar)
    seed = seed if sampling.seed is None else sampling.seed
    return Job(request_id, prompts, sampling, seed, grammar, tier=tier)


def tool_form(served: Served) -> ToolForm:
    """How this model calls functions. Raises Refusal where its chat template knows of none."""
    template = served.tokenizer.chat
    if template is None or template.tool_form is None:
        raise Refusal(
            Reason.BAD_REQUEST,
            f"The model '{served.name}' cannot call tools: its chat template does not speak of them, or in a form "
            "that is not understood here.",
            hint="Leave 'tools' out, or ask a model such as Llama 3.1, Qwen 2.5, Qwen 3 or Hermes.",
            param="tools",
        )
    return template.tool_form


def _demanded(request: ChatRequest, form: ToolForm) -> Grammar:
    schemas = {name: function.parameters for name, function in request.offered.items() if name in request.demanded}
    return Grammar(GrammarKind.LARK, call_grammar(form, schemas))


def _compile(grammar: Grammar | None, served: Served, *, is_call: bool) -> GrammarState | None:
    if grammar is None:
        return None
    try:
        return served.grammars.compile(grammar, param="tools" if is_call else "")
    except Refusal as refusal:
        if not is_call:
            raise
        text = "The schema of a function's arguments cannot be used with this 'tool_choice'"
        raise Refusal(Reason.BAD_REQUEST, f"{text}: {refusal.message}", hint=refusal.hint, param="tools") from None


def chat_tokens(messages: Sequence[ChatMessage], served: Served) -> list[int]:
    """The prompt of a chat, as token ids."""
    return served.tokenizer.encode(_chat_text(messages, served), special=False)  # the template writes special tokens


def _chat_text(messages: Sequence[ChatMessage], served: Served, tools: Sequence[Any] | None = None) -> str:
    template = served.tokenizer.chat
    if template is None:
        raise Refusal(
            Reason.BAD_REQUEST,
            f"The model '{served.name}' has no chat template.",
            hint="Use /v1/completions, or add a chat_template.jinja to the model's directory.",
            param="messages",
        )
    return template.render([_plain(message, at) for at, message in enumerate(messages)], tools or ())


def _plain(message: ChatMessage, at: int) -> dict[str, Any]:
    """The message as templates expect it: content as one string, and the arguments of calls as objects."""
    plain: dict[str, Any] = {"role": message.role, "content": message.text}
    for name in ("name", "tool_calls", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [
            _plain_call(call, f"messages[{at}].tool_calls[{n}]") for n, call in enumerate(message.tool_calls)
        ]
    return plain


def _plain_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        message = f"'{where}.function.arguments' must be a JSON object, as text."
        raise Refusal(Reason.BAD_REQUEST, message, param=f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _surely_too_long(text: str, served: Served) -> int:
    """The fewest tokens it can be, where even those do not fit, else 0: to encode megabytes takes seconds.

    Of a text that may well fit nothing is computed: the longest token is looked for in the whole vocabulary, once.
    """
    if len(text) < served.max_context:  # at a character a token it would fit
        return 0
    fewest = served.tokenizer.fewest_tokens(text)
    return fewest if fewest >= served.max_context else 0


def _completion_tokens(prompt: str | Sequence[int], asked: int, served: Served) -> list[int]:
    if isinstance(prompt, str):
        if fewest := _surely_too_long(prompt, served):
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
