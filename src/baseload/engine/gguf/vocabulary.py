"""The tokenizer of a GGUF file as a tokenizer.json: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama")."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from baseload.domain.errors import ModelError
from baseload.engine.gguf.read import GgufFile

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in the file
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut before merges: the regular expressions of the tokenizers that these names stand for; "" is GPT-2's.
_CUTS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _WORDS + r"\p{N}{1,3}" + _REST),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "qwen35"), _WORDS + r"\p{N}" + _REST),
    **dict.fromkeys(("gpt-2", "default", "mpt", "olmo", "jina-v2-en"), ""),
}
_DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r")
_BEGINS = ("llama-bpe", "llama3", "llama-v3")  # those that begin every text with a token unless told otherwise


def tokenizer_of(file: GgufFile) -> Tokenizer:
    """The tokenizer; ModelError where its kind is not known."""
    makers: dict[str, Callable[[GgufFile], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentence_piece}
    kind = str(file.get("tokenizer.ggml.model", ""))
    if kind not in makers:
        raise ModelError(
            f"{file.path}: a tokenizer of kind {kind or 'none'} is not supported; supported are gpt2 and llama.",
            hint="Use the model's Hugging Face folder.",
        )
    tokenizer = makers[kind](file)
    tokens, kinds = _tokens(file), file.get("tokenizer.ggml.token_type", [])
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in added if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in added if k == _USER_DEFINED])
    begin = file.get("tokenizer.ggml.bos_token_id")
    default = kind == "llama" or file.get("tokenizer.ggml.pre") in _BEGINS
    if isinstance(begin, int) and file.get("tokenizer.ggml.add_bos_token", default):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[begin]} $A", special_tokens=[(tokens[begin], begin)]
        )
    return tokenizer


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """The tokenizer_config.json: special tokens and, where the file has one, the chat template."""
    tokens = _tokens(file)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = file.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            config[f"{name}_token"] = tokens[index]
    template = file.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError(f"{file.path} holds no tokenizer.", hint="Use the model's Hugging Face folder.")
    return [str(token) for token in tokens]


def _byte_level(file: GgufFile) -> Tokenizer:
    name = str(file.get("tokenizer.ggml.pre", "default"))
    if name not in _CUTS and name not in _DIGIT_BY_DIGIT:
        raise ModelError(
            f"{file.path}: the tokenizer cuts text as {name!r}, which is not known here.",
            hint="Use the model's Hugging Face folder.",
        )
    vocab = {token: index for index, token in enumerate(_tokens(file))}
    merges = [_pair(str(merge)) for merge in file.get("tokenizer.ggml.merges", [])]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=name in _BEGINS))
    cut = _CUTS.get(name, "")
    first = (
        [pre_tokenizers.Split(Regex(cut), "isolated")]
        if cut
        else [pre_tokenizers.Digits(individual_digits=True)] * (name in _DIGIT_BY_DIGIT)
    )
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentence_piece(file: GgufFile) -> Tokenizer:
    tokens, scores = _tokens(file), file.get("tokenizer.ggml.scores", [])
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = file.get("tokenizer.ggml.unknown_token_id", 0)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(vocab, tokens, scores),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend("▁")] if file.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    return tokenizer


def _merges(vocab: dict[str, int], tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores best: all ways to make a token, best tokens first."""
    found = []
    for token, score in zip(tokens, scores, strict=False):
        ways = [(token[:at], token[at:]) for at in range(1, len(token))]
        ways = [way for way in ways if way[0] in vocab and way[1] in vocab]
        found += [(-score, vocab[token], vocab[left], vocab[right], left, right) for left, right in ways]
    return [(left, right) for *_, left, right in sorted(found)]
