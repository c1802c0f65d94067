"""A client's bytes to what the router needs: counts and hashes, and the bytes that go on to the worker."""

from hashlib import blake2b

import msgspec

from baseload.domain.work import Endpoint, Tier
from baseload.wire.openai import ChatRequest, CompletionRequest, parse_chat, parse_completion

BYTES_PER_TOKEN = 4  # of English text, roughly; the worker counts exactly
TOKENS_PER_MESSAGE = 4  # what a chat template adds
UNASKED_TOKENS = 512  # reserved where a chat request names no maximum
PREFIX_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # in bytes; at most 8

_CHAT = Endpoint.CHAT
_INCLUDE_USAGE = b'"stream_options":{"include_usage":true},'


class Intake(msgspec.Struct, frozen=True):
    """A parsed request. `body` goes to the worker; `withhold_usage`: the client did not ask for the usage chunk."""

    model: str
    stream: bool
    n: int
    prompt_tokens_estimate: int
    max_tokens: int
    prefix_hashes: tuple[int, ...]
    body: bytes
    withhold_usage: bool
    tier: Tier | None  # the class of service asked for; None: the key's own


def take_in(endpoint: Endpoint, body: bytes) -> Intake:
    """Parse and check a request; raises `Refusal`."""
    asked: ChatRequest | CompletionRequest
    if endpoint is _CHAT:
        asked = parse_chat(body)
        estimate, size = 0, 0
        start: list[str] = []
        for message in asked.messages:
            text = message.text
            estimate += TOKENS_PER_MESSAGE + _estimate(text)
            if size < PREFIX_LENGTHS[-1]:
                start += (message.role, text[: PREFIX_LENGTHS[-1]])
                size += len(text)
        if asked.tools and asked.tool_choice != "none":
            estimate += _estimate(msgspec.json.encode(asked.tools).decode())
        completions = asked.n or 1
        hashes = prefix_hashes("\0".join(start))
    else:
        asked = parse_completion(body)
        prompts = asked.prompts
        estimate = sum([_estimate(prompt) if isinstance(prompt, str) else len(prompt) for prompt in prompts])
        completions = (asked.n or 1) * len(prompts)
        hashes = prefix_hashes(prompts[0] if isinstance(prompts[0], str) else repr(prompts[0][:8192]))
    stream = bool(asked.stream)
    limit = asked.token_limit
    return Intake(
        model=asked.model,
        stream=stream,
        n=completions,
        prompt_tokens_estimate=max(1, estimate),
        max_tokens=completions * (UNASKED_TOKENS if limit is None else limit),
        prefix_hashes=hashes,
        body=with_usage(body) if stream and not asked.include_usage else body,
        withhold_usage=not asked.include_usage,
        tier=asked.tier,
    )


def with_usage(body: bytes) -> bytes:
    """The same JSON object with `stream_options.include_usage` true. Only a body that names it is encoded anew."""
    if b'"stream_options"' not in body and b"\\u" not in body:  # an escaped name is a name as well
        at = body.index(b"{") + 1
        return body[:at] + _INCLUDE_USAGE + body[at:]
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    options = msgspec.json.decode(fields.get("stream_options", b"null"), type=dict[str, msgspec.Raw] | None) or {}
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def prefix_hashes(text: str) -> tuple[int, ...]:
    """Hashes of the prompt's first 256, 512, … 32768 bytes, as far as it goes. Equal beginnings, equal hashes."""
    start = text[: PREFIX_LENGTHS[-1]].encode("utf-8", "surrogatepass")
    size, done, hashes = len(start), 0, []
    if size < PREFIX_LENGTHS[0]:
        return ()
    digest = blake2b(digest_size=8)
    for length in PREFIX_LENGTHS:
        if length > size:
            break
        digest.update(start[done:length])
        done = length
        hashes.append(int.from_bytes(digest.digest(), "little") >> 1)  # 63 bits: fits a signed integer
    return tuple(hashes)


def _estimate(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // BYTES_PER_TOKEN)
