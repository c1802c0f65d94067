"""The training file: defaults, paths, and refusals that name the nearest known key."""

from pathlib import Path

import pytest

from baseload.domain.errors import SettingsError
from baseload.train.config import load

GOOD = """
output_dir = "out"
checkpoint_dir = "checkpoints"
steps = 3
[[sources]]
kind = "text"
path = "data.txt"
"""


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(_written(tmp_path, GOOD))
    assert config.output_dir == str(tmp_path / "out")
    assert config.sources[0].path == str(tmp_path / "data.txt")
    assert config.optimizer.warmup_steps == 50


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stepz = 4\n" + GOOD, "unknown key `stepz`. The nearest known key is `steps`"),
        (GOOD + "wheight = 2.0\n", "unknown key `sources.wheight`. The nearest known key is `sources.weight`"),
        (GOOD + "[optimizer]\nlr = 1.0\n", "unknown key `optimizer.lr`"),
        (GOOD.replace("steps = 3", "steps = 0"), "`int` >= 1"),
        (GOOD.replace('"text"', '"parquet"'), "parquet"),
        (GOOD.replace("steps = 3", "steps = "), "is not valid TOML"),
        (GOOD.replace("steps = 3\n", ""), "missing required field `steps`"),
        (GOOD + "weight = 0.0\n", "needs at least one source"),
        (GOOD + "[model]\nheads = 3\n", "even multiple"),
        (GOOD + "[model]\nheads = 4\nkv_heads = 3\n", "multiple of `model.kv_heads`"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(_written(tmp_path, text))
    assert expected in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no training configuration"):
        load(tmp_path / "none.toml")
