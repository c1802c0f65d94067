"""Where settings come from: file, environment and flags, in that order of weight."""

from pathlib import Path

import pytest

from baseload.cli.settings import cache_dir, load, surroundings
from baseload.domain.errors import SettingsError
from baseload.domain.units import NS_PER_S


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "baseload.toml"
    path.write_text('port = 1\nhost = "::1"\ndata_dir = "data"\n[[models]]\nname = "a"\nsource = "weights/a"\n')
    return path


def test_flags_outweigh_the_environment_and_that_the_file(file: Path) -> None:
    environ = {"BASELOAD_PORT": "2", "BASELOAD_DEFAULTS_SCALING_IDLE_S": "7", "PATH": "/bin"}
    assert load(settings_file=str(file), environ={}).port == 1
    settings = load(settings_file=str(file), environ=environ)
    assert (settings.port, settings.defaults.scaling.idle_ns, settings.host) == (2, 7 * NS_PER_S, "::1")
    assert load(settings_file=str(file), environ=environ, flags={"port": "3"}).port == 3
    assert load(settings_file=str(file), environ=environ, assignments=["port=4"]).port == 4


def test_paths_of_the_file_start_at_its_folder(file: Path) -> None:
    settings = load(settings_file=str(file), environ={})
    assert settings.data_dir == str(file.parent / "data")
    assert settings.models[0].source == str(file.parent / "weights" / "a")
    assert load(settings_file=str(file), environ={}, flags={"data_dir": "here"}).data_dir == "here"


def test_the_file_is_found_here_or_in_the_data_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert load(environ={}).port == 8080
    assert load(environ={}, flags={"data_dir": str(tmp_path)}).port == 1
    assert load(environ={"BASELOAD_DATA_DIR": str(tmp_path)}).port == 1
    assert load(environ={"BASELOAD_SETTINGS": str(file)}).port == 1
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).port == 1


@pytest.mark.parametrize(
    ("environ", "assignments", "words"),
    [
        ({"BASELOAD_PROT": "1"}, [], "there is no setting BASELOAD_PROT. Did you mean BASELOAD_PORT?"),
        ({"BASELOAD_KEYS": "1"}, [], "Did you mean BASELOAD_KEY?"),
        ({}, ["prot=1"], "--set: there is no setting prot. Did you mean port?"),
        ({}, ["port"], "write it as option=value"),
        ({"BASELOAD_SETTINGS": "/nowhere.toml"}, [], "/nowhere.toml does not exist"),
    ],
)
def test_what_is_not_known_is_refused(environ: dict[str, str], assignments: list[str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ=environ, assignments=assignments)
    assert words in str(caught.value)


def test_the_cache_is_shared_by_all_data_folders(tmp_path: Path) -> None:
    assert cache_dir(load(environ={}), {"XDG_CACHE_HOME": "/c"}) == Path("/c/baseload")
    assert cache_dir(load(environ={}, flags={"cache_dir": str(tmp_path)}), {}) == tmp_path
    assert surroundings({"BASELOAD_URL": "u", "BASELOAD_KEY": "k"}).url == "u"
