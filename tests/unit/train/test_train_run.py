"""Whole runs of a tiny model: it learns, it stops and goes on bit for bit, and what it writes can be served."""

import signal
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from baseload.domain.errors import CheckpointError, DataError
from baseload.engine.weights import load_params
from baseload.train import run as run_module
from baseload.train.config import ModelShape, OptimizerConfig, SourceConfig, TokenizerConfig, TrainConfig
from baseload.train.run import train

GUIDE = "".join(
    f"## Where is the {thing}?\n\nIn the {place}.\n\nAlso asked:\n- (find|show|seek) the {thing}\n\n"
    for thing, place in [("cat", "garden"), ("dog", "house"), ("key", "box"), ("cow", "field")]
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "guide.md").write_text(GUIDE)
    (folder / "text.txt").write_text("the cat and the dog\n" * 300)
    return folder


def _config(data: Path, place: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        output_dir=str(place / "model"),
        checkpoint_dir=str(place / "checkpoints"),
        sources=(
            SourceConfig(kind="guide", path=str(data / "guide.md")),
            SourceConfig(kind="text", path=str(data / "text.txt"), weight=0.2),
        ),
        steps=10,
        model=ModelShape(hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1, max_context=64),
        tokenizer=TokenizerConfig(vocab_size=300),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2),
        batch_rows=2,
        row_tokens=48,
        checkpoint_every=4,
        log_every=3,
        dtype="float32",
    )
    return msgspec.structs.replace(config, **changes)


def _arrays(place: Path, step: int) -> dict[str, np.ndarray]:
    return load_file(place / "checkpoints" / f"step_{step:08d}" / "arrays.safetensors")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    assert not train(_config(data, place), progress=False).stopped
    return place


def _stop_at(step: int, monkeypatch: pytest.MonkeyPatch, act: object) -> None:
    """Have the run told to stop just after it has taken `step` batches."""
    original = run_module.Stream.next_batch
    taken = [0]

    def counted(self: run_module.Stream) -> object:
        taken[0] += 1
        if taken[0] == step:
            act()  # type: ignore[operator]
        return original(self)

    monkeypatch.setattr(run_module.Stream, "next_batch", counted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = _config(data, tmp_path)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        _stop_at(5, patch, lambda: signal.raise_signal(number))
        first = train(config, progress=False)
    assert (first.stopped, first.step, first.output_dir) == (True, 5, "")
    assert signal.getsignal(number) is before
    assert not (tmp_path / "model").exists()
    second = train(config, progress=False)
    assert (second.stopped, second.step) == (False, 10)
    for name, array in _arrays(whole, 10).items():
        np.testing.assert_array_equal(array, _arrays(tmp_path, 10)[name], err_msg=name)
    assert (tmp_path / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_a_run_that_died_goes_on_from_its_last_checkpoint_bit_for_bit(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        """As kill -9: nothing is caught, nothing is saved."""

    def die() -> None:
        raise Died

    config = _config(data, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Died):
        _stop_at(8, patch, die)
        train(config, progress=False)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
    assert train(config, progress=False).tokens > 0
    np.testing.assert_equal(_arrays(tmp_path, 10), _arrays(whole, 10))


def test_a_finished_run_only_writes_its_model_again(data: Path, whole: Path) -> None:
    (whole / "model" / "model.safetensors").rename(whole / "model" / "before")
    result = train(_config(data, whole), progress=False)
    assert (result.tokens, result.step) == (0, 10)
    assert (whole / "model/model.safetensors").read_bytes() == (whole / "model" / "before").read_bytes()


def test_it_learns_and_writes_a_directory_the_engine_reads(data: Path, tmp_path: Path) -> None:
    text = _config(data, tmp_path).sources[1:]
    config = _config(data, tmp_path, steps=60, checkpoint_every=100, sources=text)
    result = train(config, progress=False)
    assert result.loss < 1.0  # about 5.7 at first
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model, params = load_params(tmp_path / "model")
    assert (model.architecture, model.tied, model.layers) == ("LlamaForCausalLM", True, 2)
    assert len(model.eos_token_ids) == 1
    assert params["embed"].shape == (model.vocab_size, 32)


def test_a_run_goes_on_from_a_finished_model(data: Path, whole: Path, tmp_path: Path) -> None:
    result = train(_config(data, tmp_path, init_from=str(whole / "model"), steps=2), progress=False)
    assert result.loss < 5.0
    assert (tmp_path / "model/tokenizer.json").read_bytes() == (whole / "model/tokenizer.json").read_bytes()


def test_another_configuration_does_not_go_on(data: Path, whole: Path) -> None:
    with pytest.raises(CheckpointError, match="another `seed`"):
        train(_config(data, whole, seed=5), progress=False)


def test_fresh_forgets_the_checkpoints(data: Path, tmp_path: Path) -> None:
    train(_config(data, tmp_path), progress=False)
    result = train(_config(data, tmp_path, seed=9), progress=False, fresh=True)
    assert result.tokens > 0


def test_a_diverging_run_says_what_to_change(data: Path, tmp_path: Path) -> None:
    wild = OptimizerConfig(learning_rate=1e9, warmup_steps=0, clip_norm=0.0)
    with pytest.raises(DataError, match="learning_rate"):
        train(_config(data, tmp_path, optimizer=wild), progress=False)


def test_outside_the_main_thread_it_trains_without_signals(data: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.append(train(_config(data, tmp_path), progress=False).step))
    thread.start()
    thread.join()
    assert steps == [10]


def test_plain_lines_tell_progress(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(_config(data, tmp_path), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 5  # the first, every third, the last
    assert "tokens/s" in lines[2]
    assert "min left" in lines[2]
    assert lines[-1] == f"Wrote {tmp_path / 'model'}"
