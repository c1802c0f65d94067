"""`baseload quantize` and `models check`: one clear line where something is wrong, JSON where it is asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        (("quantize", ".", "--scheme", "w8a8", "--out", "o"), 1, "config.json"),
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


def test_the_guide_is_where_the_name_says() -> None:
    assert (GUIDE_FOLDER / "model.safetensors").is_file()
