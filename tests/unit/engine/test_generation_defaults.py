"""A model directory's own sampling defaults, and who overrides whom."""

import json
from pathlib import Path

import pytest

from baseload.domain.errors import ModelError
from baseload.domain.sampling import Sampling
from baseload.engine.generation import read_defaults
from baseload.wire.openai import parse_chat, to_sampling


def written(directory: Path, **fields: object) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(fields))
    return directory


def test_without_a_file_openai_defaults_hold(tmp_path: Path) -> None:
    assert read_defaults(tmp_path) == Sampling()


def test_do_sample_false_is_greedy(tmp_path: Path) -> None:
    assert read_defaults(written(tmp_path, do_sample=False, temperature=0.7)).temperature == 0.0


def test_figures_are_taken(tmp_path: Path) -> None:
    defaults = read_defaults(written(tmp_path, do_sample=True, temperature=0.6, top_p=0.95, top_k=20, min_p=0.1))
    assert defaults == Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1)


@pytest.mark.parametrize("value", ["warm", 7, True])
def test_nonsense_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ModelError, match="temperature"):
        read_defaults(written(tmp_path, temperature=value))


def test_the_request_wins_over_the_model() -> None:
    defaults = Sampling(temperature=0.0, top_k=20)
    message = {"role": "user", "content": "x"}
    silent = parse_chat(json.dumps({"model": "m", "messages": [message]}).encode())
    asks = parse_chat(json.dumps({"model": "m", "messages": [message], "temperature": 1.0, "top_k": 0}).encode())
    assert to_sampling(silent, defaults=defaults) == defaults
    assert to_sampling(asks, defaults=defaults) == Sampling()
