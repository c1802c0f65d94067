"""A model's tokenizer (tokenizer.json): text to ids, and ids to the bytes they stand for."""

import json
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from baseload.domain.errors import ModelError
from baseload.engine.chat_template import ChatTemplate
from baseload.engine.tool_calls import CLOSE, OPEN

_LONG = 1024  # characters of a text for which other threads should not have to wait


class TextTokenizer:
    """Encodes text, and knows each token's bytes. `chat` renders messages; None where the model has no template."""

    def __init__(self, tokenizer: Tokenizer, *, chat: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self.chat = chat
        self._cache: dict[int, bytes] = {}
        self._byte_level = _is_byte_level(tokenizer)
        self._added = {id_: (token.content, token.special) for id_, token in _added_tokens(tokenizer).items()}

    @staticmethod
    def open(model_dir: Path) -> "TextTokenizer":
        """Reads tokenizer.json and, where there is one, the chat template. Raises ModelError."""
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path} is missing.", hint="Give a Hugging Face directory with a tokenizer.json.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} cannot be read: {error}", hint="Download it again.") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return TextTokenizer(tokenizer, chat=ChatTemplate.open(model_dir))

    @property
    def vocab_size(self) -> int:
        """Ids known to the tokenizer; the model's logits may have more columns."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def tokens(self) -> dict[str, int]:
        """Every token's written form and its id."""
        known: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return known

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of the text; `special` adds what the model wants around a plain prompt (often a begin token)."""
        if len(text) < _LONG:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        else:  # unlike `encode` it lets go of the interpreter meanwhile (a megabyte takes seconds), and is faster
            ids = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids
        return ids

    def fewest_tokens(self, text: str) -> int:
        """Certainly no fewer tokens than this, told without encoding; 0 where that cannot be said."""
        return -(-len(text) // self._longest) if self._longest else 0

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token, if every byte of a text is in some token; else 0."""
        added = _added_tokens(self._tokenizer).values()
        is_kept = self._byte_level and self._tokenizer.normalizer is None and _keeps_all(self._tokenizer)
        if not is_kept or any(token.lstrip or token.rstrip for token in added):
            return 0  # a text may be changed first, or blanks vanish in a special token
        known = self.tokens()
        return max(map(len, known)) if _BYTE_OF.keys() <= known.keys() else 0  # a byte is a character at least

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the token adds to the text; empty for special and unknown tokens."""
        known = self._cache.get(token)
        if known is None:
            known = self._cache[token] = self._bytes_of(token)  # at most one entry per token of the vocabulary
        return known

    def token_text(self, token: int) -> str:
        """The token as shown in log-probabilities: its text, or for a special token its written form."""
        added = self._added.get(token)
        return added[0] if added is not None else self.token_bytes(token).decode("utf-8", "replace")

    def to_json(self) -> str:
        """The whole tokenizer as tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

    def _bytes_of(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return b"" if added[1] and added[0] not in (OPEN, CLOSE) else added[0].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            raw = [_BYTE_OF.get(char) for char in piece]
            return piece.encode() if None in raw else bytes(raw)  # type: ignore[arg-type]
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


def _added_tokens(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
    return added


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether tokens are written in GPT-2's alphabet for bytes; otherwise they are SentencePiece's."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    kinds = {decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))}
    return "ByteLevel" in kinds


def _keeps_all(tokenizer: Tokenizer) -> bool:
    """Whether what cuts a text before it is encoded drops nothing of it."""
    cutter = json.loads(tokenizer.pre_tokenizer.__getstate__()) if tokenizer.pre_tokenizer is not None else {}
    parts = cutter.get("pretokenizers", [cutter])
    return all(
        part.get("type") in ("ByteLevel", "Digits", "Split") and part.get("behavior") != "Removed" for part in parts
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in alphabet.values()]
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
