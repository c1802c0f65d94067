"""Step times on disk: found again by the same programs on the same machine, and by nobody else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from baseload.core.step_times import StepTimes
from baseload.engine import kept_times
from baseload.engine.kept_times import MAX_ENTRIES, MOST_AGE_S, KeptTimes

SHAPE = (8, 100, 0)


def learned(steps: int = 40) -> StepTimes:
    times = StepTimes()
    for number in range(steps):
        times.observe(8, 100 + number, 0, 30_000_000)
    return times


def kept(folder: Path, identity: str = "a", *, machine: str = "here", at_s: float = 1000.0) -> KeptTimes:
    return KeptTimes(folder, identity, machine=machine, now_s=lambda: at_s)


def test_they_are_found_again(tmp_path: Path) -> None:
    times = learned()
    kept(tmp_path / "times").save(times)
    again = kept(tmp_path / "times", at_s=2000.0).load()
    assert again.predict(*SHAPE) == times.predict(*SHAPE) > 0
    assert (tmp_path / "times").stat().st_mode & 0o077 == 0


def test_nothing_is_believed_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path).save(learned())
    (tmp_path / "b.json").write_bytes((tmp_path / "a.json").read_bytes())
    others = [
        kept(tmp_path, "b"),  # somebody has renamed the file
        kept(tmp_path, "c"),
        kept(tmp_path, machine="there"),
        kept(tmp_path, at_s=1000.0 + MOST_AGE_S),
        kept(tmp_path, at_s=999.0),  # from the future
        KeptTimes(None, "a", machine="here"),
    ]
    assert [other.load().steps for other in others] == [0] * len(others)
    assert kept(tmp_path).load().steps > 0
    monkeypatch.setattr(kept_times.os, "getuid", lambda: os.geteuid() + 1)
    assert kept(tmp_path).load().steps == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-20],
        lambda data: b"not json",
        lambda data: b"[1]",
        lambda data: data.replace(b"baseload-times-1", b"baseload-times-0"),
        lambda data: data.replace(b'"steps":40', b'"steps":41'),
        lambda data: json.dumps({**json.loads(data), "more": 1}).encode(),
        lambda data: json.dumps({**json.loads(data), "times": {"steps": 1}}).encode(),
    ],
)
def test_nothing_is_believed_of_what_is_damaged(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    kept(tmp_path).save(learned())
    path = tmp_path / "a.json"
    spoilt = spoil(path.read_bytes())
    assert spoilt != path.read_bytes()
    path.write_bytes(spoilt)
    assert kept(tmp_path).load().steps == 0
    kept(tmp_path).save(learned())
    assert kept(tmp_path).load().steps > 0, "and it is replaced"


def test_nothing_learned_is_not_kept_and_what_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    kept(tmp_path).save(StepTimes())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    kept(tmp_path / "file" / "times").save(learned())
    assert kept(tmp_path / "file" / "times").load().steps == 0


def test_old_ones_make_way(tmp_path: Path) -> None:
    for number in range(MAX_ENTRIES + 3):
        path = tmp_path / f"old-{number}.json"
        path.write_text("")
        os.utime(path, (number, number))
    kept(tmp_path).save(learned())
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == MAX_ENTRIES
    assert "a.json" in names
    assert "old-3.json" not in names
