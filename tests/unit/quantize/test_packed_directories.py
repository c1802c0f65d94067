"""A packed directory is mapped only when all of it fits: sizes, places, digests, shapes, layout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from baseload.domain.errors import BadWeights, ModelError
from baseload.engine import packed as packed_room
from baseload.engine.native.weights_map import annotate
from baseload.engine.packed import open_packed
from baseload.engine.quantize.pack import plain_tensors
from baseload.engine.quantize.source import open_source


@pytest.fixture
def folder(model_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A good packed directory."""
    source, out = model_of("llama"), tmp_path / "packed"
    config = json.loads((source / "config.json").read_text())
    tensors = plain_tensors(open_source(source))
    packed_room.write_packed(out, config, tensors, scheme="bf16", group=0, down_hadamard=0)
    open_packed(out, whole=True)
    return out


def change_index(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "weights.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("keep", [0, 1, 4096, -4096, -1])
def test_a_blob_of_the_wrong_length_is_refused_by_name(folder: Path, keep: int) -> None:
    blob = (folder / "weights.packed").read_bytes()
    (folder / "weights.packed").write_bytes(blob[:keep] if keep >= 0 else blob[:keep] + b"")
    with pytest.raises(BadWeights, match=r"weights\.packed"):
        open_packed(folder)


def test_a_changed_byte_is_found_by_the_whole_check_only(folder: Path) -> None:
    blob = bytearray((folder / "weights.packed").read_bytes())
    blob[len(blob) // 2] ^= 1
    (folder / "weights.packed").write_bytes(blob)
    open_packed(folder)
    with pytest.raises(BadWeights, match="damaged"):
        open_packed(folder, whole=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(bytes=index["bytes"] + 4096),
        lambda index: index.update(sha256="0" * 64),
        lambda index: index["tensors"]["layers.0.qkv"].update(offset=64),
        lambda index: index["tensors"]["layers.0.qkv"].update(shape=[-1, -1]),
        lambda index: index["tensors"].pop("lm_head"),
        lambda index: index.pop("tensors"),
        lambda index: index.pop("index_sha256"),
    ],
)
def test_an_index_that_was_changed_is_refused(folder: Path, change: Callable[[dict], None]) -> None:
    change_index(folder, change)
    with pytest.raises(BadWeights, match=r"weights\.json"):
        open_packed(folder)


@pytest.mark.parametrize("name", ["format", "layout"])
def test_another_layout_is_refused_and_says_so(folder: Path, name: str) -> None:
    change_index(folder, lambda index: index.update({name: 99}))
    with pytest.raises(BadWeights, match="99"):
        open_packed(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1, "layout": 1}', "\x00" * 100])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "weights.json").write_text(text)
    with pytest.raises(BadWeights, match=r"weights\.json"):
        open_packed(folder)


def test_a_config_of_another_model_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(BadWeights, match="embed"):
        open_packed(folder)
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BadWeights, match=r"layers\.2"):
        open_packed(folder)
    method = config["quantization_config"] | {"scheme": "w8a8"}
    path.write_text(json.dumps(config | {"quantization_config": method}))
    with pytest.raises(BadWeights, match="not of the same model"):
        open_packed(folder)
    config.pop("quantization_config")
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json"):
        open_packed(folder)


def test_a_note_keeps_the_index_whole(folder: Path) -> None:
    annotate(folder, {"fidelity": {"kl": 0.25}})
    assert open_packed(folder, whole=True).weights.about["fidelity"] == {"kl": 0.25}


def test_a_failed_write_leaves_nothing(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = model_of("llama"), tmp_path / "out"

    def broken():  # type: ignore[no-untyped-def]
        yield from list(plain_tensors(open_source(source)))[:3]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        packed_room.write_packed(out, {}, broken(), scheme="bf16", group=0, down_hadamard=0)
    assert not list(out.iterdir())
