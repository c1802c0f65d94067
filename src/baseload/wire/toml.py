"""TOML files as frozen structs. A key that no struct knows is refused, and the nearest known one named."""

import difflib
import tomllib
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from baseload.domain.errors import SettingsError

S = TypeVar("S", bound=Struct)


def parse_toml(data: bytes, kind: type[S], *, name: str, hint: str) -> S:
    """The struct in a TOML file; SettingsError says what is wrong in `name`, and `hint` where its keys are listed."""
    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name} is not valid TOML: {error}.", hint="Mend the file at that place.") from None
    _refuse_unknown(raw, kind, where="", name=name)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name}: {error}.", hint=hint) from None


def _refuse_unknown(raw: object, kind: Any, *, where: str, name: str) -> None:
    """Walk the tables beside the structs, and refuse the first key that none of them has."""
    for struct, table in _tables(raw, kind):
        hints = get_type_hints(struct, include_extras=False)
        for key, below in table.items():
            if key not in hints:
                nearest = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
                raise SettingsError(
                    f"{name}: unknown key `{where}{key}`.", hint=f"The nearest known key is `{where}{nearest[0]}`."
                )
            _refuse_unknown(below, hints[key], where=f"{where}{key}.", name=name)


def _tables(raw: object, kind: Any) -> list[tuple[type[Struct], dict[str, object]]]:
    """The (struct, table) pairs in `raw` where `kind` is a struct, a tuple of structs, or one of several."""
    if isinstance(raw, list) and get_origin(kind) is tuple:
        return [pair for item in raw for pair in _tables(item, get_args(kind)[0])]
    if get_origin(kind) in (Union, UnionType):
        return [pair for option in get_args(kind) for pair in _tables(raw, option)]
    if isinstance(raw, dict) and isinstance(kind, type) and issubclass(kind, Struct):
        return [(kind, raw)]
    return []
