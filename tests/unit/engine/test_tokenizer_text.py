from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from baseload.domain.errors import ModelError
from baseload.engine.detokenize import Detokenizer
from baseload.engine.tokenizer import TextTokenizer

TEXT = "Größe, naïve 東京 🙂\n\tthe dog's \x00 end"


def test_byte_level_tokens_give_their_bytes(tiny_model: Path) -> None:
    tokenizer = TextTokenizer.open(tiny_model)
    ids = tokenizer.encode(TEXT, special=False)
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == TEXT.encode()
    detokenizer = Detokenizer(tokenizer.token_bytes)
    assert "".join(detokenizer.push(token) for token in ids) == TEXT


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(["the", " quick", "<|end|>", "\n\n", "東京", "🙂", "\x00", "   "]), max_size=40),
    times=st.integers(1, 60),
)
def test_a_long_text_has_the_same_tokens_and_never_fewer_than_was_said(
    tiny_model: Path, words: list[str], times: int
) -> None:
    tokenizer, text = TextTokenizer.open(tiny_model), "".join(words) * times
    ids = tokenizer.encode(text, special=False)
    assert ids == Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert len(text) / 20 <= tokenizer.fewest_tokens(text) <= len(ids)


def test_where_a_text_may_be_changed_first_nothing_is_said_of_its_tokens(tiny_model: Path) -> None:
    def fewest(change: Callable[[Tokenizer], object]) -> int:
        inner = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
        change(inner)
        return TextTokenizer(inner, chat=None).fewest_tokens("x" * 1000)

    assert fewest(lambda inner: None) > 0
    assert fewest(lambda inner: setattr(inner, "normalizer", normalizers.NFC())) == 0
    assert fewest(lambda inner: inner.add_special_tokens([AddedToken("<x>", rstrip=True)])) == 0
    cut = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
    assert fewest(lambda inner: setattr(inner, "pre_tokenizer", cut)) == 0
    assert fewest(lambda inner: setattr(inner, "model", models.BPE(vocab={"a": 0}, merges=[]))) == 0


def test_special_tokens_are_silent_but_have_a_name(tiny_model: Path) -> None:
    tokenizer = TextTokenizer.open(tiny_model)
    assert tokenizer.encode("<|end|>a", special=False)[0] == 1
    assert tokenizer.token_bytes(1) == b""
    assert tokenizer.token_text(1) == "<|end|>"
    assert tokenizer.token_bytes(10**6) == b""
    assert tokenizer.encode("<|begin|>", special=False) == [0]


def test_sentencepiece_tokens_give_their_bytes() -> None:
    space = "\u2581"
    vocab = {"<unk>": 0, f"{space}the": 1, f"{space}": 2, "d": 3, **{f"<0x{i:02X}>": 10 + i for i in range(256)}}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken("<unk>", special=True)])
    tokenizer = TextTokenizer(inner, chat=None)
    assert [tokenizer.token_bytes(i) for i in (0, 1, 2, 3, 10 + 0xE6)] == [b"", b" the", b" ", b"d", b"\xe6"]


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        TextTokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer.open(tmp_path)
