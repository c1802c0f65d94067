"""`baseload catalogue`, as typed: every kind, one entry, JSON, the user's own, and what is not there."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baseload.cli.catalogue import COLUMNS, KINDS
from baseload.cli.main import app
from baseload.cli.screen import exit_code
from baseload.domain.errors import BaseloadError

CONFIG = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["catalogue", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: object) -> str:
    error = CliRunner().invoke(app, ["catalogue", *map(str, words)]).exception
    assert isinstance(error, BaseloadError)
    assert exit_code(error) == 2
    assert error.hint
    return f"{error.message} {error.hint}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed_and_every_column_is_a_figure_of_it(kind: str) -> None:
    entries = json.loads(run(kind, "--json"))
    listed = run(kind)
    if kind == "sites":
        assert not entries
        assert "No sites yet" in listed
        return
    assert f"{len(entries)} {kind}" in listed
    for entry in entries.values():
        assert entry["source"]
        assert {figure for figure, _ in COLUMNS[kind]} <= set(entry)


def test_one_entry_shows_its_source() -> None:
    shown = run("nodes", "dgx_b200")
    assert "515410" in shown
    assert "wccftech" in shown
    assert list(json.loads(run("models", "qwen3-32b", "--json"))) == ["Qwen/Qwen3-32B"]
    assert "llama3-405b" in run("failures", "llama3-405b")


def test_a_config_json_becomes_a_sheet(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    (sheet,) = json.loads(run("models", path, "--json")).values()
    assert sheet["layers"] == 4
    assert sheet["kv_kb_per_token"] == pytest.approx(4 * 2 * 512 * 2 / 1e3, rel=1e-3)
    path.write_text("{}")
    assert "hidden_size" in refused("models", path)
    path.write_text("[")
    assert "not a JSON object" in refused("models", path)


def test_what_is_not_there_is_said_with_what_is_near(tmp_path: Path) -> None:
    assert "Kinds: accelerators" in refused("planets")
    assert "gb300" in refused("accelerators", "gb30")
    assert "cannot be read" in refused("accelerators", "--catalogue", tmp_path)
    own = tmp_path / "own.toml"
    own.write_text("[nodes.box]\nname = 'Box'\nsource = 'our order'\naccelerator = 'h100_sxm'\naccelerators = 4\n")
    assert "Box" in run("nodes", "box", "--catalogue", own)
