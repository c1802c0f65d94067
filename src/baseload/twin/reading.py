"""A simulation's specification, read from a file and held to its ranges."""

import tomllib
from pathlib import Path

import msgspec

from baseload.domain.errors import SettingsError
from baseload.twin.ranges import complaint, joint_complaint
from baseload.twin.spec import SimulateConfig
from baseload.wire.toml import parse_toml

_SEE = "Mend that setting; docs/simulate.md tells what each means."


def load(path: Path) -> SimulateConfig:
    """The configuration in a TOML file; `SettingsError` names the file, table and setting at fault."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read: {error.strerror}.",
            hint="Name a TOML file; configs/simulate holds examples, and without a file a small one runs.",
        ) from None
    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.", hint="Mend the file at that place.") from None
    wrong = complaint(raw, SimulateConfig)
    if wrong:
        raise SettingsError(f"{path}: {wrong}.", hint=_SEE)
    config = parse_toml(data, SimulateConfig, name=str(path), hint=_SEE)
    return accepted(msgspec.structs.replace(config, spec_path=str(path)))


def accepted(config: SimulateConfig) -> SimulateConfig:
    """The same, once all its values can be and go together; else SettingsError."""
    wrong = complaint(msgspec.to_builtins(config), SimulateConfig, filled=True) or joint_complaint(config)
    if wrong:
        where = f"{config.spec_path}: " if config.spec_path else ""
        raise SettingsError(f"{where}{wrong}.", hint=_SEE)
    return config
