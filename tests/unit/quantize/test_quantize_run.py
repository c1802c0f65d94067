"""A model quantized as anybody would: servable, faithful, whole or not there at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from baseload.domain.errors import DataError, ModelError, SettingsError
from baseload.engine.config import read_json
from baseload.engine.native.weights_map import Matrix
from baseload.engine.packed import open_packed, partial_of
from baseload.engine.quantize import calibrate, layerwise, run, transforms
from baseload.engine.quantize.calibrate import from_file
from baseload.engine.quantize.equalize import after_rows, factors, read_by
from baseload.engine.quantize.layerwise import Fit, quantize_layers
from baseload.engine.quantize.measure import final_states, measure
from baseload.engine.quantize.openings import OPENINGS
from baseload.engine.quantize.pack import packed_tensors
from baseload.engine.quantize.run import Request, quantize
from baseload.engine.quantize.schemes import Scheme
from baseload.engine.quantize.source import open_source
from baseload.engine.tokenizer import TextTokenizer

Models = Callable[[str], Path]
LOOSEST = {"bf16": 1e-4, "w8a8": 3e-3, "w4a8": 3e-2}  # KL of models with random weights


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3moe"])
def test_every_family_in_every_scheme_is_near_float32(
    family: str, scheme: str, model_of: Models, text_file: Path, tmp_path: Path
) -> None:
    request = Request(model_of(family), tmp_path / "out", Scheme.parse(scheme), calibrate=text_file, rotate=False)
    outcome = quantize(request, show=silent)
    looser = 10 if family == "qwen3moe" else 1  # of random weights, a router changes its mind easily
    assert outcome.fidelity.kl < LOOSEST[scheme] * looser
    assert abs(outcome.fidelity.ratio - 1) < 0.1
    packed = open_packed(tmp_path / "out", whole=True)
    assert packed.scheme == scheme
    source = open_source(model_of(family))
    for name, exact in source.layer(1).items():
        if name.endswith(("norm", "router")) and scheme == "bf16":
            assert np.array_equal(packed.layer(1)[name], exact)
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (stated["quant_method"], stated["scheme"]) == ("baseload", scheme)
    assert packed.weights.about["fidelity"]["kl"] == outcome.fidelity.kl
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_fitting_is_better_than_rounding_to_nearest(model_of: Models, text_file: Path) -> None:
    source = open_source(model_of("llama"))
    calibration = from_file(text_file, TextTokenizer.open(model_of("llama")), source.config)
    losses = []
    for fit in (Fit(compensate=False, realign=False), Fit()):
        values = dict(quantize_layers(source, Scheme.parse("w4a8"), calibration, fit=fit))
        error = 0.0
        for name in ("qkv", "out"):  # what the matrix gives on the inputs that reach it in the first layer
            assert values[f"layers.0.{name}"].codes.shape == source.layer(0)[name].shape
        states = final_states(source.config, source.layer, source.top(), calibration.tokens)
        layers = [
            {
                name.split(".", 2)[2]: value.restore() if hasattr(value, "restore") else value
                for name, value in values.items()
                if name.startswith(f"layers.{index}.")
            }
            for index in range(source.config.layers)
        ]
        top = {"embed": values["embed"], "final_norm": values["final_norm"]}
        block = transforms.down_block(source.config)
        rounded = final_states(source.config, layers.__getitem__, top, calibration.tokens, block=block)
        error = float(np.mean(np.square(states - rounded)))
        losses.append(error)
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3moe"])
def test_turning_and_exchanging_factors_change_nothing(family: str, model_of: Models) -> None:
    source = open_source(model_of(family))
    tokens = np.random.default_rng(0).integers(3, 200, (2, 24)).astype(np.int32)
    top = source.top()
    exact = final_states(source.config, source.layer, top, tokens) @ top["lm_head"].T
    turn = transforms.orthogonal(source.config.hidden, 3)
    c, rng = source.config, np.random.default_rng(1)

    def some(*shape: int) -> np.ndarray:
        return np.exp(rng.standard_normal(shape)).astype(np.float32)

    def layer(index: int) -> transforms.Layer:
        found = transforms.rotate_layer(source.layer(index), turn)
        found = read_by(found, "attn_norm", ("qkv",), some(c.hidden))
        found = read_by(found, "feed_norm", ("gate_up", "router", "experts.gate_up"), some(c.hidden))
        scale = some(c.kv_heads, 1, c.head_dim)
        wide = np.repeat(scale, c.heads // c.kv_heads, axis=1).reshape(-1)
        found = after_rows(found, "qkv", (c.heads + c.kv_heads) * c.head_dim, "out", (scale.reshape(-1), wide))
        if "down" not in found:
            return found
        scale = some(c.intermediate)
        return after_rows(found, "gate_up", c.intermediate, "down", (scale, scale))

    turned = read_by(transforms.rotate_top(top, turn), "final_norm", ("lm_head",), some(c.hidden))
    changed = final_states(source.config, layer, turned, tokens) @ turned["lm_head"].T
    assert np.max(np.abs(changed - exact)) < 2e-3 * np.max(np.abs(exact))


@pytest.mark.parametrize(("heads", "block"), [((1, 1), 0), ((2, 4), 0), ((1, 1), 64)])
def test_factors_make_both_roundings_cost_less(heads: tuple[int, int], block: int) -> None:
    rng = np.random.default_rng(0)
    size = np.exp(rng.standard_normal(128)).astype(np.float32)
    inputs = rng.standard_normal((300, 128)).astype(np.float32) * size
    inputs[::7] = 0  # padding
    weight = rng.standard_t(5, (96, 128)).astype(np.float32)
    scale = factors(inputs, weight, heads=heads, block=block)
    wide = np.repeat(scale.reshape(heads[0], 1, -1), heads[1], axis=1).reshape(-1)
    assert wide.shape == (128,)

    def error(divide: np.ndarray) -> float:
        x, w = (transforms.hadamard(part, block) for part in (inputs / divide, weight * divide))
        steps = [np.maximum(np.max(np.abs(part), axis=1, keepdims=True), 1e-9) / 127 for part in (x, w)]
        rounded = [np.rint(part / step) * step for part, step in zip((x, w), steps, strict=True)]
        return float(np.mean(np.square(rounded[0] @ rounded[1].T - inputs @ weight.T)))

    assert error(wide) < 0.95 * error(np.ones(128, np.float32))
    assert np.array_equal(factors(inputs * 0, weight), np.ones(128, np.float32))


def test_the_transform_is_its_own_inverse() -> None:
    x = np.random.default_rng(0).normal(size=(5, 192)).astype(np.float32)
    once = transforms.hadamard(x, 64)
    assert np.allclose(transforms.hadamard(once, 64), x, atol=1e-5)
    assert np.allclose(np.sum(once**2, axis=1), np.sum(x**2, axis=1), rtol=1e-5)
    spike = np.zeros((1, 64), np.float32)
    spike[0, 5] = 8
    assert np.allclose(np.abs(transforms.hadamard(spike, 64)), 1)
    assert np.array_equal(transforms.hadamard(x, 0), x)


def test_a_model_calibrates_itself(model_of: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baseload.engine.quantize.calibrate._OWN_ROUNDS", ())
    monkeypatch.setattr("baseload.engine.quantize.calibrate._OWN_TOKENS", 12)
    monkeypatch.setattr("baseload.engine.quantize.calibrate.OPENINGS", OPENINGS[:16])
    request = Request(model_of("llama"), tmp_path / "out", Scheme.parse("w8a8"), rotate=True)
    outcome = quantize(request, show=silent)
    assert outcome.rotated
    assert outcome.kept  # of a small model in 8 bits, what costs most stays in bfloat16
    stated = read_json(tmp_path / "out" / "config.json")["quantization_config"]
    assert stated["kept"] == list(outcome.kept)
    packed = open_packed(tmp_path / "out")
    schemes = {name: packed.weights.matrix(name).scheme for name in ("layers.0.out", "layers.1.out", "lm_head")}
    assert {name for name, scheme in schemes.items() if scheme == "bf16"} <= set(outcome.kept)
    plain = sum(entry.n * entry.k for entry in packed.weights.entries.values() if isinstance(entry, Matrix))
    extra = sum(packed.weights.matrix(name).n * packed.weights.matrix(name).k for name in outcome.kept)
    assert extra <= plain / 16
    assert outcome.fidelity.kl < LOOSEST["w8a8"]
    assert outcome.calibration == "what the model says itself"


def test_what_is_there_is_not_overwritten_unless_asked(model_of: Models, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    request = Request(model_of("llama"), out, Scheme.parse("bf16"), calibrate=text_file)
    with pytest.raises(SettingsError, match="is there already"):
        quantize(request, show=silent)
    with pytest.raises(SettingsError, match="was not written by"):  # whatever --force says
        quantize(replace(request, replace=True), show=silent)
    assert (out / "mine").read_text() == "keep"
    made = replace(request, out=tmp_path / "made")
    quantize(made, show=silent)
    (made.out / "mine").touch()
    quantize(replace(made, replace=True), show=silent)
    assert not (made.out / "mine").exists()
    open_packed(made.out)
    out = made.out
    with pytest.raises(ModelError, match="quantized already"):
        quantize(replace(request, source=out, out=tmp_path / "twice"), show=silent)


@pytest.mark.parametrize("up", [0, 1])
def test_the_model_itself_is_never_replaced(up: int, model_of: Models, text_file: Path) -> None:
    model = model_of("llama")
    before = sorted(model.rglob("*"))
    request = Request(model, [model, model.parent][up], Scheme.parse("bf16"), calibrate=text_file, replace=True)
    with pytest.raises(SettingsError, match="holds the model itself"):
        quantize(request, show=silent)
    assert sorted(model.rglob("*")) == before


def test_of_a_large_text_pieces_are_read(model_of: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Straße {line} über Æther. " for line in range(40_000)), encoding="utf-8")
    tokenizer, config = TextTokenizer.open(model_of("llama")), open_source(model_of("llama")).config
    monkeypatch.setattr(calibrate, "_MOST_BYTES", 64 * 701)
    found = from_file(path, tokenizer, config)
    assert 1 < len(found.tokens) <= calibrate.MAX_ROWS
    path.write_bytes(path.read_bytes()[:-9] + b"\xff\xfe\xff\xfe then")
    with pytest.raises(DataError, match="UTF-8"):
        from_file(path, tokenizer, config)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_a_few_huge_channels_cost_little(
    scheme: str, model_of: Models, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained models have channels of what follows a norm that are many times as large as the others."""
    model = tmp_path / "model"
    shutil.copytree(model_of("llama"), model)
    tensors = {name: value.copy() for name, value in load_file(model / "model.safetensors").items()}
    for name, value in tensors.items():  # the model computes what it did
        if name.endswith("layernorm.weight"):
            value[[3, 17]] *= 50
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            value[:, [3, 17]] /= 50
    save_file(tensors, model / "model.safetensors")
    monkeypatch.setattr(run, "TRIAL_PARAMETERS", 0)  # as a large model: turned, and fitted in bfloat16
    monkeypatch.setattr(layerwise, "FINE_PARAMETERS", 0)
    outcome = quantize(Request(model, tmp_path / "out", Scheme.parse(scheme), calibrate=text_file), show=silent)
    assert outcome.rotated
    assert outcome.fidelity.kl < 1.5 * LOOSEST[scheme]


def test_a_large_model_writes_its_words_in_eight_bits(
    model_of: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "OPENINGS", OPENINGS[:16])
    monkeypatch.setattr(calibrate, "_OWN_TOKENS", 12)
    monkeypatch.setattr(run, "TRIAL_PARAMETERS", 0)
    stages = []

    def show(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total, stage
        stages.append((stage, done))

    outcome = quantize(Request(model_of("qwen3moe"), tmp_path / "out", Scheme.parse("w8a8")), show=show)
    assert outcome.rotated
    assert list(dict(stages)) == ["prepare", "generate", "quantize, turned", "measure"]
    assert sum(stage.startswith("quantize") for stage, _ in stages) > 10  # the bar moves within a layer, too
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("content", [None, b"too short", b"\xff\xfe\x00bytes" * 100])
def test_a_useless_calibration_text_is_refused(content: bytes | None, model_of: Models, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    request = Request(model_of("llama"), tmp_path / "out", Scheme.parse("w8a8"), calibrate=path)
    with pytest.raises(DataError, match=r"text\.txt"):
        quantize(request, show=silent)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(("name", "group"), [("w4", 0), ("w8a8", 32), ("w4a8", 48), ("", 0)])
def test_unknown_schemes_are_refused(name: str, group: int) -> None:
    with pytest.raises(SettingsError):
        Scheme.parse(name, group)


KILLED = """
import os, signal, sys
from pathlib import Path
from baseload.engine.quantize import run
from baseload.engine.quantize.schemes import Scheme
left = [int(sys.argv[4])]
def show(stage, done, total):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
place = run.packed.place
def late(*arguments, **named):
    if left[0] > 1000:
        os.kill(os.getpid(), signal.SIGKILL)
    place(*arguments, **named)
run.packed.place = late
source, out, text = map(Path, sys.argv[1:4])
run.quantize(run.Request(source, out, Scheme("bf16"), calibrate=text), show=show)
"""


@pytest.mark.parametrize("after", [1, 3, 2000])
def test_a_kill_leaves_nothing_under_the_name(after: int, model_of: Models, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(model_of("llama")), str(out), str(text_file), str(after)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not out.exists()
    assert list(tmp_path.glob(".out.*"))  # what the next one clears away
    partial_of(out)
    assert not list(tmp_path.glob(".out.*"))


def test_measuring_a_model_against_itself_finds_no_difference(
    model_of: Models, text_file: Path, tmp_path: Path
) -> None:
    source = open_source(model_of("llama"))
    calibration = from_file(text_file, TextTokenizer.open(model_of("llama")), source.config)
    quantize(Request(model_of("llama"), tmp_path / "b", Scheme("bf16"), calibrate=text_file), show=silent)
    found = measure(source, open_packed(tmp_path / "b"), calibration.tokens, calibration.counts)
    assert found.tokens == calibration.tokens[:, 1:].size
    assert found.kl < 1e-4
    losses = calibration.counts.copy()
    losses[:, 5:] = 0
    assert measure(source, open_packed(tmp_path / "b"), calibration.tokens, losses).tokens == 4 * len(losses)


def test_packing_is_streamed(model_of: Models, text_file: Path) -> None:
    """The first tensor is ready before the last layer was read."""
    source = open_source(model_of("llama"))
    calibration = from_file(text_file, TextTokenizer.open(model_of("llama")), source.config)
    values = quantize_layers(source, Scheme("w8a8"), calibration, fit=Fit())
    first = next(packed_tensors(source.config, values))
    assert first[0] == "embed"
