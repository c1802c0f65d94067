"""What `baseload up` makes sure of before it takes requests."""

import stat
from pathlib import Path

import msgspec
import pytest

from baseload.cli import first_start
from baseload.cli.first_start import ensure_admin_key, ensure_models, wanted
from baseload.domain.errors import SettingsError
from baseload.domain.events import Event, KeyCreated, ModelPut
from baseload.domain.model import ModelSpec
from baseload.domain.tenant import Key
from baseload.wire.bearer import hash_secret
from baseload.wire.settings import Settings

REMOTE = ModelSpec("far", "http://10.0.0.7:8000")


class FakeControl:
    """Holds what was acknowledged."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.specs: dict[str, ModelSpec] = {}
        self.held: list[Key] = []

    def now_ns(self) -> int:
        return 5

    def keys(self) -> list[Key]:
        return self.held

    def model(self, name: str) -> ModelSpec | None:
        return self.specs.get(name)

    async def acknowledge(self, event: Event) -> None:
        self.events.append(event)
        match event:
            case KeyCreated():
                self.held.append(event.key)
            case ModelPut():
                self.specs[event.spec.name] = event.spec


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(first_start, "GUIDE_FOLDER", folder)
    return folder


async def test_the_first_key_is_written_for_its_owner_alone_and_only_once(tmp_path: Path) -> None:
    control, path = FakeControl(), tmp_path / "first-key"
    assert await ensure_admin_key(control, path)  # type: ignore[arg-type]
    secret = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert control.held[0].secret_sha256 == hash_secret(secret)
    assert control.held[0].is_admin
    assert not await ensure_admin_key(control, path)  # type: ignore[arg-type]
    assert path.read_text().strip() == secret
    assert names(tmp_path) == ["first-key"], "no half-written file is left"


async def test_a_plain_key_is_no_admin(tmp_path: Path) -> None:
    control = FakeControl()
    control.held.append(Key("key_1", "shop", "0" * 64, 0))
    assert await ensure_admin_key(control, tmp_path / "first-key")  # type: ignore[arg-type]


def test_guide_comes_at_the_first_start_and_not_after_it_was_removed(guide: Path) -> None:
    control = FakeControl()
    assert [(one.name, one.source) for one in wanted(control, Settings(), is_first=True)] == [("guide", str(guide))]  # type: ignore[arg-type]
    assert wanted(control, Settings(), is_first=False) == []  # type: ignore[arg-type]
    assert wanted(control, Settings(guide=False), is_first=True) == []  # type: ignore[arg-type]
    own = msgspec.structs.replace(REMOTE, name="guide")
    assert wanted(control, Settings(models=(own,)), is_first=True) == [own], "the settings' own guide wins"  # type: ignore[arg-type]


def test_guide_follows_the_installation_when_its_folder_is_gone(guide: Path, tmp_path: Path) -> None:
    control = FakeControl()
    control.specs["guide"] = ModelSpec("guide", str(tmp_path / "old"), context_tokens=512)
    (moved,) = wanted(control, Settings(), is_first=False)  # type: ignore[arg-type]
    assert moved.source == str(guide)
    control.specs["guide"] = ModelSpec("guide", str(guide), context_tokens=512)
    assert wanted(control, Settings(), is_first=False) == []  # type: ignore[arg-type]


async def test_only_changed_models_are_put(tmp_path: Path) -> None:
    control = FakeControl()
    settings = Settings(models=(REMOTE,), guide=False)
    for _ in range(2):
        await ensure_models(control, settings)  # type: ignore[arg-type]
    assert control.events == [ModelPut(REMOTE)]
    broken = Settings(models=(ModelSpec("near", str(tmp_path / "nothing")),), guide=False)
    with pytest.raises(SettingsError, match="The model near of the settings cannot be served"):
        await ensure_models(control, broken)  # type: ignore[arg-type]
