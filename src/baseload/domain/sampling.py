"""How tokens are chosen: what a client may ask of the sampler, as frozen values already checked for range."""

from enum import StrEnum

from msgspec import Struct


class GrammarKind(StrEnum):
    """What `Grammar.text` holds."""

    JSON_OBJECT = "json_object"  # any JSON object; text is empty
    JSON_SCHEMA = "json_schema"  # text is the schema, as JSON
    LARK = "lark"
    REGEX = "regex"


class Grammar(Struct, frozen=True):
    """The language the completion must belong to."""

    kind: GrammarKind
    text: str = ""


class Sampling(Struct, frozen=True):
    """One request's sampling. The defaults are OpenAI's; ranges are checked by whoever parses the request."""

    temperature: float = 1.0  # 0: greedy, ties to the lowest token id
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off; else relative to the likeliest token
    seed: int | None = None  # None: drawn for the request; the same seed gives the same tokens
    stop: tuple[str, ...] = ()  # not part of the text returned
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None  # None: as many as the context leaves
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit), by ascending id
    n: int = 1
    logprobs: bool = False  # of the chosen token
    top_logprobs: int = 0  # and of the likeliest so many (at most 20); needs logprobs
    ignore_eos: bool = False
    grammar: Grammar | None = None
