"""Where settings come from: file < environment < flags. The only place that reads environment variables."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from baseload.domain.errors import SettingsError
from baseload.domain.model import GUESS_WORDS, ModelSpec
from baseload.wire.settings import OPTIONS, Settings, Value, Written, assigned, build, read_toml, unknown_option

FILE_NAME = "baseload.toml"
PREFIX = "BASELOAD_"
SECRET_PREFIX = "BASELOAD_SECRET_"  # noqa: S105  # what comes after it is a secret's name
LONGEST_SECRET = 8192
_DEFAULT_GUESS = "defaults.engine.guess"


class Surroundings(Struct, frozen=True):
    """What the environment says besides settings: how a command finds and enters a running Baseload."""

    url: str = ""  # BASELOAD_URL
    key: str = ""  # BASELOAD_KEY
    settings_file: str = ""  # BASELOAD_SETTINGS
    cache_home: str = ""  # XDG_CACHE_HOME


# Not options of the file: variables that tools and shells set, with the field they fill.
OTHER_VARIABLES = {"BASELOAD_URL": "url", "BASELOAD_KEY": "key", "BASELOAD_SETTINGS": "settings_file"}


def surroundings(environ: Mapping[str, str] = os.environ) -> Surroundings:
    """Read the few variables that are not settings."""
    found = {field: environ.get(variable, "") for variable, field in OTHER_VARIABLES.items()}
    return Surroundings(**found, cache_home=environ.get("XDG_CACHE_HOME", ""))


def take_secrets(environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """The secrets of the environment by name, in capitals. They are taken out of it: no worker inherits them."""
    names = [name for name in sorted(environ) if name.startswith(SECRET_PREFIX)]
    return {
        name.removeprefix(SECRET_PREFIX).upper(): checked_secret(environ.pop(name), where=f"The variable {name}")
        for name in names
    }


def checked_secret(text: str, *, where: str) -> str:
    """A secret without the line break at its end; SettingsError where it could not stand in a header."""
    secret = text.strip()
    if (
        not secret
        or len(secret) > LONGEST_SECRET
        or not secret.isascii()
        or not secret.isprintable()
        or " " in secret
    ):
        raise SettingsError(
            f"{where} holds no secret: one line of visible ASCII is needed.", hint="Write the API key there, alone."
        )
    return secret


def load(
    *,
    settings_file: str = "",
    flags: Mapping[str, str] | None = None,
    assignments: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """The one tree. `flags` maps option paths to text; `assignments` are `--set option=value` texts."""
    from_environment = _environment(environ)
    from_flags = _flags(flags or {}, assignments)
    path = _find_file(settings_file or surroundings(environ).settings_file, {**from_environment, **from_flags})
    written = _read(path) if path else Written({})
    folder = path.parent if path else Path()
    layers = [_placed(written.values, folder), _placed(from_environment, Path()), _placed(from_flags, Path())]
    settings = build(layers, models=written.models)
    if "data_dir" in written.values and "data_dir" not in {**from_environment, **from_flags}:
        settings = msgspec.structs.replace(settings, data_dir=str(folder / Path(settings.data_dir).expanduser()))
    if "limits.catalogue" in written.values and "limits.catalogue" not in {**from_environment, **from_flags}:
        own = str(folder / Path(settings.limits.catalogue).expanduser()) if settings.limits.catalogue else ""
        settings = msgspec.structs.replace(settings, limits=msgspec.structs.replace(settings.limits, catalogue=own))
    return msgspec.structs.replace(settings, models=tuple(anchored(spec, folder) for spec in settings.models))


def cache_dir(settings: Settings, environ: Mapping[str, str] = os.environ) -> Path:
    """Where compiled programs are kept: shared by all data folders, so that a fresh one wakes as fast."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser().absolute()
    home = surroundings(environ).cache_home
    return (Path(home) if home else Path.home() / ".cache") / "baseload"


def variable(path: str) -> str:
    """The environment variable of an option: `defaults.scaling.idle_s` → BASELOAD_DEFAULTS_SCALING_IDLE_S."""
    return PREFIX + path.upper().replace(".", "_")


def _environment(environ: Mapping[str, str]) -> dict[str, Value]:
    known = {variable(path): path for path in OPTIONS}
    found: dict[str, Value] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name.startswith(SECRET_PREFIX) or name in OTHER_VARIABLES:
            continue
        if name not in known:
            raise unknown_option(name, [*known, *OTHER_VARIABLES], where="environment")
        found[known[name]] = Value(environ[name], name, is_text=True)
    return found


def _flags(flags: Mapping[str, str], assignments: Sequence[str]) -> dict[str, Value]:
    found = assigned(assignments, OPTIONS, example="port=9000")
    for path, text in flags.items():
        found[path] = Value(text, f"--{path.replace('_', '-')}", is_text=True)
    return found


def _find_file(named: str, light: Mapping[str, Value]) -> Path | None:
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingsError(f"The settings file {path} does not exist.", hint="Check --settings.")
        return path
    data_dir = str(light["data_dir"].raw) if "data_dir" in light else Settings().data_dir
    for folder in (Path(), Path(data_dir).expanduser()):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None


def _read(path: Path) -> Written:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error}.") from error
    return read_toml(text, name=str(path))


def anchored(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Relative paths (the source, a draft model) are meant relative to the file that names them."""
    if spec.is_remote:
        ca_file = spec.remote.ca_file and str((folder / Path(spec.remote.ca_file).expanduser()).absolute())
        return msgspec.structs.replace(spec, remote=msgspec.structs.replace(spec.remote, ca_file=ca_file))
    engine = msgspec.structs.replace(spec.engine, guess=_anchored_guess(spec.engine.guess, folder))
    source = str((folder / Path(spec.source).expanduser()).absolute())
    return msgspec.structs.replace(spec, source=source, engine=engine)


def _placed(values: Mapping[str, Value], folder: Path) -> Mapping[str, Value]:
    """With the default draft model, where it is a path, relative to `folder`: each layer has its own."""
    found = values.get(_DEFAULT_GUESS)
    if found is None or not isinstance(found.raw, str):
        return values
    return {**values, _DEFAULT_GUESS: msgspec.structs.replace(found, raw=_anchored_guess(found.raw, folder))}


def _anchored_guess(guess: str, folder: Path) -> str:
    return str((folder / Path(guess).expanduser()).absolute()) if guess and guess not in GUESS_WORDS else guess
