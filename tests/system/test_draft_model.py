"""A draft model beside a model, in a running Baseload: the same answers, and clear words where it does not fit."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import psutil
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from baseload.cli.model_check import look
from baseload.cli.settings import load
from baseload.domain.model import EngineSpec
from baseload.worker.guesses import _specs, open_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-m", "baseload.cli.main"]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("BASELOAD_")}
LAYERS = 16
CACHE_BYTES = 4 << 20
PROMPTS = ["the quick brown fox", "the dog does not mind", "over the lazy", "naïve 東京", "jumps"]


def write_pair(folder: Path, tiny: Path) -> tuple[Path, Path]:
    """A deep model whose layers change little, and one of a single layer that therefore says nearly the same."""
    config, tensors = json.loads((tiny / "config.json").read_text()), load_file(tiny / "model.safetensors")
    rng = np.random.default_rng(11)
    tables = {name: value for name, value in tensors.items() if ".layers." not in name}
    tables["lm_head.weight"] = tables["lm_head.weight"] / 1  # so that sampling has a choice

    def write(name: str, layers: int, strength: float) -> Path:
        out = folder / name
        out.mkdir(parents=True)
        made = dict(tables)
        for layer in range(layers):
            for key, value in tensors.items():
                if key.startswith("model.layers.0."):
                    quiet = strength if key.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                    noise = rng.standard_normal(value.shape).astype(np.float32) / np.sqrt(value.shape[-1])
                    made[key.replace(".0.", f".{layer}.")] = value if value.ndim == 1 else noise * np.float32(quiet)
        save_file(made, out / "model.safetensors")
        (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (out / file).write_bytes((tiny / file).read_bytes())
        return out

    return write("large", LAYERS, 0.02), write("small", 1, 0.02)


class Up:
    """One `baseload up` with a model "off" (no guesses), a model "on" (the draft), and whatever else is written."""

    def __init__(self, folder: Path, settings: Path) -> None:
        self.data = folder / "data"
        command = [*COMMAND, "up", "--port", "0", "--data-dir", str(self.data), "--settings", str(settings)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRON, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), line + self.process.communicate()[1]
        self.url = line.split()[1]
        key = (self.data / "first-key").read_text().strip()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=200)

    def texts(self, model: str, prompt: str, **more: object) -> list[str]:
        asked = {"max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}, **more}
        answer = self.client.completions.create(model=model, prompt=prompt, **asked)  # type: ignore[call-overload]
        return [choice.text for choice in answer.choices]

    def worker(self, model: str) -> tuple[psutil.Process, str]:
        """The worker's process and its URL."""
        status = run("status", "--data-dir", str(self.data), "--json")
        replica = next(one for one in json.loads(status.stdout)["replicas"] if one["model"] == model)
        return psutil.Process(replica["pid"]), replica["url"]

    def counter(self, model: str, name: str) -> float:
        with urllib.request.urlopen(f"{self.worker(model)[1]}/metrics") as page:
            found = re.search(rf"^{name}{{.*}} (\S+)$", page.read().decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=ENVIRON, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"), tiny_model)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Path, Path]) -> Path:
    large, small = pair
    file = tmp_path_factory.mktemp("settings") / "baseload.toml"
    tables = 'cache_dir = "cache"\nguide = false\nspares = 0\n'.replace('"cache"', f'"{file.parent / "cache"}"')
    for name, more in (("off", ""), ("on", f'engine.guess = "{os.path.relpath(small, file.parent)}"\n')):
        tables += f'[[models]]\nname = "{name}"\nsource = "{large}"\nengine.dtype = "float32"\n'
        tables += "engine.max_context = 128\nengine.max_seqs = 16\nengine.max_step_tokens = 32\n"
        tables += f"engine.kv_cache_bytes = {CACHE_BYTES}\n{more}"
    file.write_text(tables)
    return file


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> Iterator[Up]:
    started = Up(tmp_path_factory.mktemp("up"), settings)
    yield started
    started.process.send_signal(signal.SIGINT)
    _, errors = started.process.communicate(timeout=200)
    assert "Traceback" not in errors, errors


def test_answers_are_the_same_with_a_draft_model_and_after_kill_9(up: Up) -> None:
    plain = [up.texts("off", prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as several:
        assert list(several.map(lambda prompt: up.texts("on", prompt), PROMPTS)) == plain
    assert up.counter("on", "vllm:spec_decode_num_accepted_tokens_total") > 0, "guesses were made, and right"
    assert up.counter("off", "vllm:spec_decode_num_draft_tokens_total") == 0
    process, _ = up.worker("on")
    process.kill()
    process.wait(200)
    assert [up.texts("on", prompt) for prompt in PROMPTS[:2]] == plain[:2]
    assert up.worker("on")[0].pid != process.pid


def test_sampled_answers_have_the_same_distribution_and_with_a_seed_the_same_tokens(up: Up) -> None:
    seen: dict[str, Counter[str]] = {"off": Counter(), "on": Counter()}
    for model, seeds in (("off", range(25)), ("on", range(100, 125))):  # other seeds: two samples of one distribution
        for seed in seeds:
            seen[model].update(up.texts(model, "the dog", n=16, seed=seed, temperature=1, max_tokens=2))
    assert sum(seen["off"].values()) == sum(seen["on"].values()) == 400
    both = seen["off"] + seen["on"]
    kinds = [text for text, count in both.most_common() if count >= 20]
    rows = np.array([[seen[model][text] for text in kinds] for model in ("off", "on")])
    rows = np.column_stack([rows, 400 - rows.sum(axis=1)]).astype(float)
    expected = rows.sum(axis=0) / 2
    assert len(kinds) >= 4
    freedom = len(kinds)  # one less than the columns
    statistic = float(((rows - expected) ** 2 / expected).sum())
    assert statistic < freedom + 3.3 * np.sqrt(2 * freedom), "beyond about the 99.9th percentile of chi-square"
    assert up.texts("on", "the dog", n=8, seed=5, temperature=1) == up.texts(
        "off", "the dog", n=8, seed=5, temperature=1
    )


def test_the_draft_shares_the_bound_on_memory(pair: tuple[Path, Path]) -> None:
    large, small = pair
    for asked in (CACHE_BYTES, 0):
        spec = EngineSpec(
            dtype="float32", guess=str(small), kv_cache_bytes=asked, max_seqs=4, max_context=128, max_step_tokens=16
        )
        own, drafts = _specs(large, small, spec)
        assert own.kv_cache_bytes == LAYERS * drafts.kv_cache_bytes
        assert own.kv_cache_bytes + drafts.kv_cache_bytes <= (asked or 1 << 30)
        if not asked:
            runner, source = open_model(large, spec=spec, cache_dir=None)
            source._runner.close()  # type: ignore[union-attr]
            assert runner.num_blocks == source.room == 4 * 128 // 16, "no more than four sequences can use"  # type: ignore[union-attr]


def test_a_draft_that_cannot_be_used_is_refused_in_words(up: Up, pair: tuple[Path, Path], tmp_path: Path) -> None:
    large, small = pair
    corrupt, foreign = tmp_path / "corrupt", tmp_path / "foreign"
    for folder in (corrupt, foreign):
        folder.mkdir()
        for file in small.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    with (corrupt / "model.safetensors").open("r+b") as file:
        file.truncate(3000)
    tokenizer = json.loads(Tokenizer.from_file(str(small / "tokenizer.json")).to_str())
    vocab = tokenizer["model"]["vocab"]
    first, second = [text for text, number in vocab.items() if number in (300, 301)]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (foreign / "tokenizer.json").write_text(json.dumps(tokenizer))
    for draft, words in (
        (tmp_path / "gone", "is neither a folder nor a GGUF file"),
        (corrupt, "model.safetensors"),
        (foreign, "another vocabulary"),
    ):
        verdict = look(large, draft=draft)
        assert words in verdict.error
        assert "engine.guess" in verdict.error + verdict.hint
    assert look(large, draft=small).error == ""
    added = ("models", "add", "wrong", str(large), "--data-dir", str(up.data), "--set")
    for guess, words in (("prompts", f"{Path('prompts').absolute()} is neither"), ("", "must not be empty")):
        done = run(*added, f"engine.guess={guess}")
        assert done.returncode in (1, 2), done
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_relative_draft_is_meant_relative_to_the_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "baseload.toml"
    first, second = (f'[[models]]\nname = "{name}"\nsource = "{pair[0]}"\n' for name in "ab")
    file.write_text(f'[defaults.engine]\nguess = "small"\n{first}{second}engine.guess = "prompt"\n')
    loaded = load(settings_file=str(file), environ={})
    assert [spec.engine.guess for spec in loaded.models] == [str(tmp_path / "small"), "prompt"]
    assert loaded.defaults.engine.guess == str(tmp_path / "small")
    by_flag = load(settings_file=str(file), assignments=["defaults.engine.guess=small"], environ={})
    assert by_flag.defaults.engine.guess == str(Path("small").absolute())


def test_a_draft_that_vanishes_later_is_named_by_the_worker(pair: tuple[Path, Path], tmp_path: Path) -> None:
    spec = json.dumps({"guess": str(tmp_path / "gone"), "dtype": "float32"})
    command = [sys.executable, "-m", "baseload.worker", "--model", str(pair[0]), "--name", "m", "--spec-json", spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ModelError: The draft model (engine.guess) cannot be used:")
    assert str(tmp_path / "gone") in done.stderr
