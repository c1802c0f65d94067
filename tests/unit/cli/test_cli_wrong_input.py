"""What no command expects: files nested without end, addresses and keys that are none, folders that are not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from baseload.cli import main


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and what was said, as one line of words."""
    monkeypatch.setattr(sys, "argv", ["baseload", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr()
    assert said.out == ""
    assert isinstance(ended.value.code, int)
    return ended.value.code, " ".join(said.err.split())


@pytest.mark.parametrize(
    "command",
    [("train", "--config"), ("simulate",), ("plan",), ("catalogue", "--catalogue"), ("status", "--settings")],
    ids=" ".join,
)
def test_a_file_nested_without_end_is_refused(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 5000 + "]" * 5000)
    code, said = run(monkeypatch, capsys, *command, str(deep))
    assert code == 2
    assert "nested too deeply" in said
    assert "Next:" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("status", "--url", "http://127.0.0.1:99999", "--key", "x"), 2, "is not an address"),
        (("status", "--url", "http://[::", "--key", "x"), 2, "is not an address"),
        (("status", "--url", "here", "--key", "x"), 2, "is not an http:// or https:// address"),
        (("status", "--url", "http://127.0.0.1:1", "--key", "a\nb"), 2, "no key has"),
        (("chat", "hello", "--url", "http://127.0.0.1:1", "--key", "東"), 2, "no key has"),
        (("status", "--url", "http://127.0.0.1:1", "--key", "x"), 3, "Nothing answers"),
        (("validate", "--data", "nowhere"), 2, "no such folder"),
        (("validate", "--only", "power,prices"), 2, "no part 'prices'"),
        (("up", "--host", "nobody.invalid", "--port", "0"), 1, "--host"),
        (("up", "--data-dir", "file", "--port", "0"), 1, "cannot be used: File exists"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, capsys, *arguments)[0] == code
    assert words in run(monkeypatch, capsys, *arguments)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("redirection", "command", "code", "words"),
    [
        (">/dev/full", "version", 1, "No space left"),
        (">/dev/full", "version --json", 1, "No space left"),
        (">&-", "version", 0, ""),
        (">&-", "version --json", 0, ""),
        ("| head -c 0", "plan --example", 0, ""),
        (">/dev/null", "catalogue zones", 0, ""),
    ],
)
def test_output_that_goes_nowhere_ends_in_words(redirection: str, command: str, code: int, words: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m baseload.cli.main {command} {redirection}"],
        env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
