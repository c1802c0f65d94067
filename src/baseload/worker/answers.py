"""From the engine's deltas to OpenAI's answers, streamed or whole."""

import secrets
import time
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from baseload.domain.errors import Refusal
from baseload.domain.work import PhaseTimes, Tier, TokenCounts
from baseload.engine.jobs import Delta
from baseload.engine.tokenizer import TextTokenizer
from baseload.engine.tool_calls import Call, CallReader, ToolForm
from baseload.net.server import Exchange
from baseload.wire.openai import ChatRequest, CompletionRequest
from baseload.wire.openai_answers import (
    DONE,
    ChatChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessageOut,
    CompletionChoice,
    CompletionLogprobs,
    FunctionCall,
    Letterhead,
    Phases,
    TokenLogprob,
    ToolCall,
    TopLogprob,
    Usage,
    sse,
    usage,
)
from baseload.wire.openai_errors import SSE, error_body, error_event

MOST_CALLS = 128  # in one answer


class Answer:
    """One open request: writes what the engine brings to its exchange. `answer_id` is shown to the client."""

    def __init__(
        self,
        exchange: Exchange,
        request: ChatRequest | CompletionRequest,
        *,
        answer_id: str,
        tokenizer: TextTokenizer,
        width: int,
        arrived_ns: int,
        tier: Tier | None = None,
        tool_form: ToolForm | None = None,
    ) -> None:
        """`tool_form`: how the model calls functions, where any are offered to it."""
        self.exchange = exchange
        self.arrived_ns = arrived_ns
        self.first_ns = 0
        self._is_chat = isinstance(request, ChatRequest)
        shown = "" if tier is None else tier.value  # shown to whoever asked for one, or has another than usual
        prefix = "chatcmpl-" if self._is_chat else "cmpl-"
        self._head = Letterhead(self._is_chat, prefix + answer_id, int(time.time()), request.model, shown)
        self._headers = (("x-request-id", answer_id),)
        self._streams = bool(request.stream)
        self._wants_usage = request.include_usage
        self._wants_logprobs = request.logprobs is not None and request.logprobs is not False
        self._tops = (request.top_logprobs or 0) if isinstance(request, ChatRequest) else (request.logprobs or 0)
        self._tokenizer = tokenizer
        self._texts: list[list[str]] = [[] for _ in range(width)]
        self._lengths = [0] * width  # characters so far, for text_offset
        self._deltas: list[list[Delta]] = [[] for _ in range(width)]  # with logprobs only
        self.finishes: list[str | None] = [None] * width
        self._readers: list[CallReader] = []  # one for each choice, where functions are offered
        if tool_form is not None and isinstance(request, ChatRequest):
            most = 1 if request.parallel_tool_calls is False or request.demanded else MOST_CALLS
            self._readers = [CallReader(tool_form, request.offered, most=most) for _ in range(width)]

    def take(self, deltas: Sequence[Delta]) -> None:
        """One step's deltas of this request: one event per choice and token when streaming."""
        if not self.first_ns:
            self.first_ns = time.monotonic_ns()
            if self._streams:
                headers = (*self._headers, ("cache-control", "no-cache"))
                self.exchange.start(200, content_type=SSE, headers=headers)
        events = []
        for delta in deltas:
            if self._streams and self._readers:
                events += [sse(chunk) for chunk in self._tool_chunks(delta)]
            elif self._streams:
                events.append(sse(self._chunk(delta)))
            else:
                self._texts[delta.index].append(delta.text)
                if self._wants_logprobs and delta.shown:
                    self._deltas[delta.index].append(delta)
            if delta.finish is not None:
                self.finishes[delta.index] = delta.finish
        if events:
            self.exchange.write(b"".join(events))

    def end(self, tokens: TokenCounts, phases: PhaseTimes) -> None:
        """All choices have finished."""
        used = usage(prompt=tokens.prompt, completion=tokens.completion, cached=tokens.cached_in)
        times = Phases(phases.queue_ns, phases.prefill_ns, phases.decode_ns)
        if not self._streams:
            self.exchange.respond(200, self._whole(used, times), headers=self._headers)
            return
        tail = b""
        if self._wants_usage:
            tail = sse(self._head.chunk((), used, baseload=times))
        self.exchange.end(tail + DONE)

    def fail(self, refusal: Refusal) -> None:
        """The engine did not take the request, or it broke."""
        if self.exchange.started:
            self.exchange.end(error_event(refusal))
            return
        status, headers, body = error_body(refusal)
        self.exchange.respond(status, body, headers=[*headers, *self._headers])

    def _chunk(self, delta: Delta) -> bytes:
        text, index = delta.text, delta.index
        offset = self._lengths[index]
        first = not self._texts[index]
        if first:
            self._texts[index].append("")  # marks that the role is out
        self._lengths[index] = offset + len(text)
        shows = self._wants_logprobs and delta.shown
        if self._is_chat:
            logprobs = ChatLogprobs([self._token(delta)]) if shows else None
            part = ChatDelta(role="assistant", content=text) if first else ChatDelta(content=text)
            choice = ChatChoice(index=index, delta=part, logprobs=logprobs, finish_reason=delta.finish)
            return self._head.chunk((choice,))
        listed = self._listed([delta], offset) if shows else None
        plain = CompletionChoice(index=index, text=text, logprobs=listed, finish_reason=delta.finish)
        return self._head.chunk((plain,))

    def _tool_chunks(self, delta: Delta) -> list[bytes]:
        """The chunks of a delta that may belong to a call: text as soon as it is none, a call once it is whole."""
        index, reader = delta.index, self._readers[delta.index]
        parts = []
        if not self._texts[index]:
            self._texts[index].append("")  # marks that the role is out
            parts.append(ChatDelta(role="assistant", content=""))
        begun = reader.calls
        pieces = reader.feed(delta.text) + (reader.end() if delta.finish is not None else [])
        for piece in pieces:
            if isinstance(piece, Call):
                parts.append(ChatDelta(tool_calls=[_tool_call(piece, begun)]))
                begun += 1
            else:
                parts.append(ChatDelta(content=piece))
        chunks = [self._head.chunk((ChatChoice(index=index, delta=part),)) for part in parts]
        if delta.finish is not None:
            how = _finish(delta.finish, reader)
            chunks.append(self._head.chunk((ChatChoice(index=index, delta=ChatDelta(), finish_reason=how),)))
        return chunks

    def _whole_choice(self, index: int, text: str) -> ChatChoice:
        if not self._readers:
            shown = [self._token(delta) for delta in self._deltas[index]] if self._wants_logprobs else None
            logprobs = None if shown is None else ChatLogprobs(shown)
            message = ChatMessageOut(text)
            return ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=self.finishes[index])
        reader = self._readers[index]
        pieces = reader.feed(text) + reader.end()
        calls = [_tool_call(piece) for piece in pieces if isinstance(piece, Call)]
        said = "".join([piece for piece in pieces if isinstance(piece, str)])
        message = ChatMessageOut(said or None, tool_calls=calls) if calls else ChatMessageOut(said)
        return ChatChoice(index=index, message=message, finish_reason=_finish(self.finishes[index], reader))

    def _whole(self, used: Usage, times: Phases) -> bytes:
        texts = ["".join(parts) for parts in self._texts]
        if self._is_chat:
            chats = [self._whole_choice(index, text) for index, text in enumerate(texts)]
            return self._head.answer(chats, used, baseload=times)
        plain = [
            CompletionChoice(
                index=index,
                text=text,
                logprobs=self._listed(self._deltas[index], 0) if self._wants_logprobs else None,
                finish_reason=self.finishes[index],
            )
            for index, text in enumerate(texts)
        ]
        return self._head.answer(plain, used, baseload=times)

    def _token(self, delta: Delta) -> TokenLogprob:
        tokenizer = self._tokenizer
        tops = [
            TopLogprob(tokenizer.token_text(token), logprob, list(tokenizer.token_bytes(token)))
            for token, logprob in delta.top
        ]
        shown = list(tokenizer.token_bytes(delta.token))
        return TokenLogprob(tokenizer.token_text(delta.token), delta.logprob, shown, tops)

    def _listed(self, deltas: Sequence[Delta], offset: int) -> CompletionLogprobs:
        tokenizer = self._tokenizer
        offsets = []
        for delta in deltas:
            offsets.append(offset)
            offset += len(delta.text)
        tops = [  # the chosen token is always among them
            {tokenizer.token_text(token): logprob for token, logprob in (*delta.top, (delta.token, delta.logprob))}
            for delta in deltas
        ]
        return CompletionLogprobs(
            tokens=[tokenizer.token_text(delta.token) for delta in deltas],
            token_logprobs=[delta.logprob for delta in deltas],
            top_logprobs=tops if self._tops else None,
            text_offset=offsets,
        )


def _tool_call(call: Call, index: int | UnsetType = UNSET) -> ToolCall:
    return ToolCall(f"call_{secrets.token_hex(12)}", FunctionCall(call.name, call.arguments), index=index)


def _finish(how: str | None, reader: CallReader) -> str | None:
    """Why the answer ended, as OpenAI says it: a model that stopped after a call waits for its result."""
    return "tool_calls" if how == "stop" and reader.calls else how
