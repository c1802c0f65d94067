"""The commands that need no running system, in this process: JSON that is only JSON, words, exit codes."""

import json
import os
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from baseload.cli import doctor
from baseload.cli.doctor import examine
from baseload.cli.main import EPILOG, app
from baseload.domain.errors import SettingsError
from baseload.engine.native import library
from baseload.engine.native.features import CpuFeatures
from baseload.wire.settings import Settings


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("BASELOAD_")]:
        monkeypatch.delenv(name)
    return CliRunner()


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command there is."""
    for name, found in sorted(group.commands.items()):
        if getattr(found, "commands", None):
            yield from commands(found, (*words, name))
        else:
            yield (*words, name)


COMMANDS = list(commands(get_command(app)))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_speaks_json(cli: CliRunner, command: tuple[str, ...]) -> None:
    shown = cli.invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "Usage:" in shown.output
    if command != ("up",):
        assert "--json" in shown.output


def test_the_exit_codes_are_documented(cli: CliRunner) -> None:
    assert " ".join(cli.invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split()).find(EPILOG) >= 0
    assert cli.invoke(app, ["nonsense"]).exit_code == 2


def test_the_printed_settings_are_a_settings_file(cli: CliRunner, tmp_path: Path) -> None:
    printed = cli.invoke(app, ["up", "--print-settings"])
    assert printed.exit_code == 0
    assert tomllib.loads(printed.stdout) == {
        "gateway": {},
        "journal": {},
        "limits": {},
        "defaults": tomllib.loads(printed.stdout)["defaults"],
    }
    (tmp_path / "baseload.toml").write_text(printed.stdout)
    assert cli.invoke(app, ["doctor", "--help"]).exit_code == 0


def test_wrong_flags_are_settings_errors(cli: CliRunner) -> None:
    wrong = cli.invoke(app, ["up", "--set", "prot=1"])
    assert isinstance(wrong.exception, SettingsError)
    assert "Did you mean port?" in str(wrong.exception)
    assert isinstance(cli.invoke(app, ["usage", "--from", "tomorrow"]).exception, SettingsError)


def test_simulate_gives_the_same_figures_for_the_same_seed(cli: CliRunner, tmp_path: Path) -> None:
    arguments = ["simulate", "--seed", "5", "--requests", "12", "--rate", "4", "--json"]
    first, second = (json.loads(cli.invoke(app, arguments).stdout) for _ in range(2))
    assert first == second
    assert (first["requests"], first["outcomes"]) == (12, {"ok": 12})
    table = cli.invoke(app, arguments[:-1])
    assert "to the first token" in table.stdout
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,3\n1,20,4\n")
    replayed = json.loads(cli.invoke(app, ["simulate", "--trace", str(trace), "--json"]).stdout)
    assert (replayed["prompt_tokens"], replayed["completion_tokens"]) == (30, 7)
    hunt = json.loads(cli.invoke(app, ["simulate", "--seeds", "2", "--json"]).stdout)["hunt"]
    assert (hunt["seeds"], hunt["passed"]) == (2, 2)


def test_doctor_says_what_is_lost_and_what_to_do(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shown = cli.invoke(app, ["doctor", "--json"], env={"BASELOAD_PORT": str(port)})
    assert shown.exit_code == 1
    findings = {one["name"]: one for one in json.loads(shown.stdout)}
    assert findings["port"]["level"] == "bad"
    assert "--port" in findings["port"]["advice"]
    assert findings["JAX"]["level"] == "ok"
    assert all(one["advice"] for one in findings.values() if one["level"] != "ok")

    monkeypatch.setattr(doctor, "_cpu_flags", lambda: frozenset({"sse2"}))
    weak = {one.name: one for one in examine(Settings(port=0, data_dir=str(tmp_path)))}
    assert weak["vector units"].level == "note"
    assert weak["port"].level == "ok"
    key = tmp_path / "first-key"
    key.write_text("bl-x")
    key.chmod(0o644)
    careless = {one.name: one for one in examine(Settings(port=0, data_dir=str(tmp_path)))}
    assert "chmod 600" in careless["data folder"].advice


@pytest.mark.parametrize(
    ("built", "has", "level", "word"),
    [
        (False, CpuFeatures(), "note", "g++"),
        (True, CpuFeatures(), "note", "XLA"),
        (True, CpuFeatures(avx2=True), "ok", ""),
        (True, CpuFeatures(avx2=True, avx512=True, has_amx=True), "note", "wrong results"),
        (True, CpuFeatures(avx2=True, avx512=True, amx_refused=True), "note", "refuses AMX"),
    ],
)
def test_doctor_says_which_kernels_run(
    built: bool, has: CpuFeatures, level: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: object() if built else None)
    monkeypatch.setattr(library, "features", lambda: has)
    monkeypatch.setattr(library, "is_stale", lambda: False)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    found = {one.name: one for one in examine(Settings(port=0, data_dir=str(tmp_path)))}["kernels"]
    assert found.level == level
    assert word in found.advice
    monkeypatch.setattr(library, "is_stale", lambda: True)
    found = {one.name: one for one in examine(Settings(port=0, data_dir=str(tmp_path)))}["kernels"]
    assert ("make native" in found.advice) == (level == "ok" or not built)
