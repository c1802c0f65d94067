"""`baseload quantize` and `models check`: one clear line where something is wrong, JSON where it is asked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from baseload.cli import main
from baseload.cli.first_start import GUIDE_FOLDER


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user calls it."""
    return subprocess.run(
        [sys.executable, "-m", "baseload.cli.main", *map(str, arguments)],
        cwd=folder, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text in the guide's words."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Run make up, or baseload up once it is installed. It prints ready and the URL. " * 40)
    return path


def test_guide_by_name_gives_a_folder_that_is_whole(text: Path, tmp_path: Path) -> None:
    done = run("quantize", "guide", "--scheme", "bf16", "--calibrate", text, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["out"] == str(tmp_path / "guide-bf16")
    assert said["fidelity"]["kl"] < 1e-3
    checked = run("models", "check", "guide-bf16", "--json", folder=tmp_path)
    assert json.loads(checked.stdout)["context_tokens"] == 1024
    blob = tmp_path / "guide-bf16" / "weights.packed"
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    damaged = run("models", "check", "guide-bf16", folder=tmp_path)
    assert damaged.returncode == 1
    assert "weights.packed" in damaged.stderr
    again = run("quantize", "guide", "--scheme", "bf16", "--calibrate", text, folder=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("quantize", "nobody", "--scheme", "w8a8"), 2, "no model nobody"),
        (("quantize", "guide", "--scheme", "w3"), 2, "w8a8, w4a8, bf16"),
        (("quantize", "guide", "--scheme", "w4a8", "--group", "40"), 2, "32, 64, 128"),
        (("quantize", "guide", "--scheme", "w8a8", "--calibrate", "absent.txt"), 2, "absent.txt"),
        (("quantize", ".", "--scheme", "w8a8", "--out", "o"), 2, "config.json"),
        (("quantize", "guide", "--scheme", "bf16", "--out", "/dev/null/q"), 2, "cannot be written"),
        (("quantize", "guide"), 2, "--scheme"),
        (("models", "check", "nobody"), 2, "no model nobody"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == code
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["cut", "config", "tokenizer", "missing", "gguf"])
def test_a_broken_model_gets_one_clear_line(
    wrong: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(GUIDE_FOLDER, model)
    weights, words = model / "model.safetensors", {"cut": "model.safetensors", "gguf": "model.gguf"}.get(wrong, wrong)
    if wrong == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif wrong == "missing":
        weights.unlink()
        words = "safetensors"
    elif wrong == "gguf":
        model = tmp_path / "model.gguf"
        model.write_bytes(b"GGUF\x03\0\0\0 and then nothing")
    else:
        (model / f"{wrong}.json").write_text("{ no JSON")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["quantize", model, "--scheme", "w8a8", "--calibrate", text, "--out", tmp_path / "o"]
    monkeypatch.setattr(sys, "argv", ["baseload", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert words in "".join(said.split())  # a long path is broken into lines
    assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before


FULL = """
import errno, sys
from baseload.engine.native import weights_map
from baseload.cli import main

def full(path, chunks, **how):
    next(iter(chunks))
    raise OSError(errno.ENOSPC, "No space left on device")

def stopped(path, chunks, **how):
    next(iter(chunks))
    raise KeyboardInterrupt

weights_map.write_whole = {"full": full, "stopped": stopped}[sys.argv.pop(1)]
main.run()
"""


@pytest.mark.parametrize(("how", "code", "words"), [("full", 2, "No space left"), ("stopped", 130, "")])
def test_a_full_disk_or_a_stop_leaves_nothing_half_done(
    how: str, code: int, words: str, text: Path, tmp_path: Path
) -> None:
    arguments = ["quantize", "guide", "--scheme", "bf16", "--calibrate", str(text), "--out", "o", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", FULL, how, *arguments],
        cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_guide_is_where_the_name_says() -> None:
    assert (GUIDE_FOLDER / "model.safetensors").is_file()
