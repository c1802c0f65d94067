"""GGUF files that this test writes itself: the same model comes out, and what is damaged is refused by name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as to_blocks
from tokenizers import Tokenizer

from baseload.domain.errors import BadWeights, ModelError, UnsupportedArchitecture
from baseload.engine.chat_template import ChatTemplate
from baseload.engine.config import ModelConfig
from baseload.engine.gguf.convert import check_file, model_folder
from baseload.engine.gguf.pack import LOSS_8, SHARE, fitted, four_bits, loss, own_loss
from baseload.engine.gguf.read import GgufFile, config_of, is_gguf
from baseload.engine.gguf.vocabulary import tokenizer_of
from baseload.engine.native import library
from baseload.engine.native.weights_map import Matrix
from baseload.engine.packed import is_packed, open_packed
from baseload.engine.quantize.levels import Kept, Rounded
from baseload.engine.quantize.measure import final_states, measure
from baseload.engine.quantize.source import ModelSource, open_source
from baseload.engine.registry import read_config
from baseload.engine.weights import check_weights, pieces

TYPES = gguf.GGMLQuantizationType
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
KIND_OF = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3moe"}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def pairs_side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys of the Llama family."""
    each = weight.shape[0] // heads
    return weight.reshape(heads, 2, each // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, folder: Path, family: str, kind: Any = TYPES.F32, **changes: Any) -> Path:
    """The model of a folder as a GGUF file, matrices in `kind`."""
    source, kind_name = open_source(folder), KIND_OF[family]
    c = source.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", kind_name))
    writer.add_context_length(c.max_context)
    writer.add_embedding_length(c.hidden)
    writer.add_block_count(changes.get("layers", c.layers))
    writer.add_feed_forward_length(c.intermediate)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_rope_freq_base(c.rope.theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    if c.moe is not None:
        writer.add_expert_count(c.moe.experts)
        writer.add_expert_used_count(c.moe.experts_per_token)
        writer.add_expert_feed_forward_length(c.moe.intermediate)
    add_tokenizer(writer, folder, changes.get("pre", "smollm"))
    experts: dict[str, list[np.ndarray]] = {}
    for piece in pieces(c):
        value = np.asarray(source.read(piece), np.float32)
        stem, _, last = piece.name.rpartition(".")
        if stem in NAMES:
            add(writer, f"{NAMES[stem]}.{last}", value, kind)
            continue
        _, _, layer, rest = stem.split(".", 3)
        if rest.startswith("mlp.experts."):
            name = f"blk.{layer}.ffn_{rest.split('.')[-1].removesuffix('_proj')}_exps.{last}"
            experts.setdefault(name, []).append(value)
            continue
        if family == "llama" and rest in ("self_attn.q_proj", "self_attn.k_proj"):
            value = pairs_side_by_side(value, c.heads if "q_" in rest else c.kv_heads)
        add(writer, f"blk.{layer}.{NAMES[rest]}.{last}", value, kind)
    for name, parts in experts.items():
        add(writer, name, np.stack(parts), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, name: str, value: np.ndarray, kind: Any) -> None:
    if value.ndim == 1 or "ffn_gate_inp" in name or kind == TYPES.F32:
        writer.add_tensor(name, value)
    elif kind == TYPES.F16:
        writer.add_tensor(name, value.astype(np.float16))
    else:
        writer.add_tensor(name, to_blocks(value, kind), raw_dtype=kind)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, pre: str) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocab, special = raw["model"]["vocab"], [one["id"] for one in raw["added_tokens"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(vocab, key=vocab.get))
    writer.add_token_types([3 if index in special else 1 for index in range(len(vocab))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def logits(source: ModelSource, tokens: np.ndarray) -> np.ndarray:
    top = source.top()
    return final_states(source.config, source.layer, top, tokens) @ top["lm_head"].T


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 200, (2, 20)).astype(np.int32)


def same_model(one: ModelConfig, other: ModelConfig) -> bool:
    fields = (
        "hidden",
        "layers",
        "heads",
        "kv_heads",
        "head_dim",
        "tied",
        "qkv_bias",
        "qk_norm",
        "is_moe",
        "moe",
        "rope",
    )
    return all(getattr(one, name) == getattr(other, name) for name in fields)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3moe"])
def test_the_same_model_comes_out(
    family: str, model_of: Callable[[str], Path], tmp_path: Path, tokens: np.ndarray
) -> None:
    path = write(tmp_path / "model.gguf", model_of(family), family)
    original, read = open_source(model_of(family)), open_source(path)
    assert same_model(original.config, read.config)
    assert np.array_equal(logits(original, tokens), logits(read, tokens))


@pytest.mark.parametrize(
    ("kind", "error"),
    [(TYPES.F16, 1e-3), (TYPES.BF16, 1e-2), (TYPES.Q8_0, 3e-2), (TYPES.Q5_0, 0.2), (TYPES.Q4_0, 0.4)],
)
def test_types_are_restored(
    kind: Any, error: float, model_of: Callable[[str], Path], tmp_path: Path, tokens: np.ndarray
) -> None:
    path = write(tmp_path / "model.gguf", model_of("llama"), "llama", kind)
    exact = open_source(model_of("llama")).layer(0)["down"]
    found = open_source(path).layer(0)["down"]
    assert 0 < np.max(np.abs(found - exact)) < error * np.max(np.abs(exact))


@pytest.mark.parametrize("kind", [TYPES.Q4_K, TYPES.Q5_K, TYPES.Q6_K])
def test_super_blocks_are_restored_row_by_row(kind: Any, tmp_path: Path) -> None:
    """One block whose first row of scale is 1 and whose codes are known, among blocks of zeros."""
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    _, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.zeros((4, 2 * size), np.uint8)
    row = raw[2, size:]
    if kind == TYPES.Q6_K:  # low nibbles, high bits, sixteen scales, the scale of all
        row[:128], row[192:208] = 0x55, 2
        row[208:210] = np.array([0.5], np.float16).view(np.uint8)
        expected = np.full(256, 0.5 * 2 * (5 - 32), np.float32)
    else:  # scale of all, minimum of all, six-bit scales, (high bits,) nibbles
        row[:2] = np.array([0.25], np.float16).view(np.uint8)
        row[4:8] = 3
        row[-128:] = 0x77
        expected = np.concatenate([np.full(128, 0.25 * 3 * 7), np.zeros(128)]).astype(np.float32)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GgufFile(tmp_path / "one.gguf").read("token_embd.weight", (4, 512))
    assert np.allclose(found[2, 256:], expected)
    assert not found[[0, 1, 3]].any()
    assert not found[2, :256].any()


def test_it_is_unpacked_once_into_a_folder_that_can_be_served(
    model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "model.gguf", model_of("llama"), "llama")
    assert check_file(path) == 128
    folder = model_folder(path, tmp_path / "cache")
    check_weights(folder, read_config(folder))
    assert read_config(folder).file_dtype == "bfloat16"
    template = ChatTemplate.open(folder)
    assert template is not None
    assert template.render([{"role": "user", "content": "Hi"}]) == "Hi"
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_folder(path, tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert model_folder(folder, tmp_path / "cache") == folder
    path = write(path, model_of("llama"), "llama", TYPES.F16)
    assert model_folder(path, tmp_path / "cache") != folder


def test_byte_level_tokens_are_those_of_the_original(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", model_of("llama"), "llama")
    ours = tokenizer_of(GgufFile(path))
    original = Tokenizer.from_file(str(model_of("llama") / "tokenizer.json"))
    for text in ("The keeper counted 17 letters.", "naïve ☃ 12345", "", "  two  spaces\n\ttab", "<|end|>The"):
        assert ours.encode(text).ids == original.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == original.decode(original.encode(text).ids)


def test_sentence_piece_joins_the_best_pair_first(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces_ = {"▁": -9, "a": -8, "b": -7, "c": -10, "ab": -1, "bc": -0.5, "▁a": -2, "▁ab": -3, "abc": -4}
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *pieces_])
    writer.add_token_scores([0.0] * len(tokens) + [float(score) for score in pieces_.values()])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces_)])
    writer.add_bos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = tokenizer_of(GgufFile(tmp_path / "spm.gguf"))
    assert tokenizer.encode("abc").tokens == ["<s>", "▁a", "bc"]  # bc scores best, then ▁a
    assert tokenizer.encode("ab é").tokens == ["<s>", "▁ab", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab é abc").ids) == "ab é abc"


@pytest.mark.parametrize("keep", [3, 4, 24, 2_000, 60_000, -1])
def test_a_truncated_file_is_refused_by_name(keep: int, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", model_of("llama"), "llama")
    data = path.read_bytes()
    assert len(data) > 100_000
    path.write_bytes(data[:keep])
    with pytest.raises(ModelError, match=r"model\.gguf"):
        open_source(path).layer(1)


def test_foreign_files_are_refused_with_what_to_do(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 not this")
    assert is_gguf(other)
    with pytest.raises(BadWeights, match="does not begin with GGUF"):
        open_source(other)
    with pytest.raises(ModelError, match="cannot be read"):
        open_source(tmp_path / "absent.gguf")
    with pytest.raises(UnsupportedArchitecture, match="mamba"):
        config_of(GgufFile(write(tmp_path / "m.gguf", model_of("llama"), "llama", architecture="mamba")))
    with pytest.raises(BadWeights, match=r"blk\.2"):
        open_source(write(tmp_path / "l.gguf", model_of("llama"), "llama", layers=3)).layer(2)
    with pytest.raises(ModelError, match="martian"):
        tokenizer_of(GgufFile(write(tmp_path / "t.gguf", model_of("llama"), "llama", pre="martian")))


def test_without_the_package_it_says_how_to_install_it(
    model_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.gguf", model_of("llama"), "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'baseload\[gguf\]'"):
        open_source(path)


def four_bits_in(matrix: np.ndarray, kind: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix as `kind` has it, and the steps and offsets of its groups of 32, as the file's own format says."""
    raw = to_blocks(matrix, kind)
    restored = gguf.quants.dequantize(raw, kind)
    blocks = raw.reshape(-1, 18 if kind == TYPES.Q4_0 else 20)
    floats = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
    step = floats[:, 0]
    offset = -8 * step if kind == TYPES.Q4_0 else floats[:, 1]
    offset, step = np.where(step < 0, offset + 15 * step, offset), np.abs(step)
    shape = (len(matrix), -1)
    return restored, step.reshape(shape), offset.reshape(shape)


@pytest.mark.parametrize("kind", [TYPES.Q4_0, TYPES.Q4_1])
@pytest.mark.parametrize(("tails", "share"), [(3, 0.4), (30, 0.2)])
def test_four_bits_stay_four_bits(kind: Any, tails: int, share: float) -> None:
    matrix = np.random.default_rng(tails).standard_t(tails, (48, 256)).astype(np.float32)
    matrix[5] = 0
    exact, step, offset = four_bits_in(matrix, kind)
    found = four_bits(exact, step, offset)
    wide = found.levels.step.repeat(32, axis=1) * found.codes + found.levels.offset.repeat(32, axis=1)
    assert wide.min() >= -128
    assert wide.max() <= 127
    assert found.codes.min() >= 0
    assert found.codes.max() <= 15
    own = loss(matrix, exact)  # what the file's own rounding cost
    assert loss(exact, found.restore()) < share * own
    assert 0.6 * own < own_loss(exact, step) < 1.4 * own
    assert np.array_equal(found.restore()[5], np.zeros(256, np.float32))


def test_what_four_or_eight_bits_cannot_hold_takes_more() -> None:
    rng = np.random.default_rng(0)
    none = np.full((32, 8), np.nan, np.float32)
    plain = fitted(rng.standard_normal((32, 256)).astype(np.float32), none, none)
    assert isinstance(plain, Rounded)
    assert plain.levels.scheme == "w8"
    spiked = rng.standard_normal((32, 256)).astype(np.float32)
    spiked[:, 7] = 80  # one scale a row cannot serve both
    assert isinstance(fitted(spiked, none, none), Kept)
    uneven = (rng.standard_normal((32, 256)) * np.repeat(np.geomspace(1, 400, 8), 32)).astype(np.float32)
    exact, step, offset = four_bits_in(uneven, TYPES.Q4_0)
    found = fitted(exact, step, offset)  # small groups beside large ones: what is lost is little of the matrix
    assert loss(exact, found.restore()) <= max(SHARE * own_loss(exact, step), LOSS_8)


@pytest.mark.parametrize("kind", [TYPES.Q4_0, TYPES.Q8_0])
@pytest.mark.parametrize("family", ["llama", "qwen3moe"])
def test_a_file_of_few_bits_is_served_in_few_bits(
    family: str, kind: Any, model_of: Callable[[str], Path], tmp_path: Path, tokens: np.ndarray
) -> None:
    path = write(tmp_path / "model.gguf", model_of(family), family, kind)
    folder = model_folder(path, tmp_path / "cache")
    if library.load() is None:
        assert not is_packed(folder)
        return
    model = open_packed(folder, whole=True)
    four = {name: entry.scheme for name, entry in model.weights.entries.items() if isinstance(entry, Matrix)}
    assert set(four.values()) == ({"w4"} if kind == TYPES.Q4_0 else {"w8"})
    assert (model.scheme, model.group) == (("w4a8", 32) if kind == TYPES.Q4_0 else ("w8a8", 0))
    found = measure(open_source(path), model, tokens)
    assert found.kl < (0.2 if family == "qwen3moe" else 0.02)  # random weights, whose routers change their minds
    assert sorted(one.name for one in folder.parent.iterdir()) == [folder.name]
    assert not is_packed(model_folder(path, tmp_path / "cache", exact=True))
