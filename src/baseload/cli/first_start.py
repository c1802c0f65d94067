"""What `baseload up` makes sure of before it takes requests: an admin key, the models of the settings, `guide`."""

import logging
from pathlib import Path

import msgspec

import baseload
from baseload.cli.model_check import check_model
from baseload.core.ports import Control
from baseload.domain.errors import ModelError, SettingsError
from baseload.domain.events import KeyCreated, ModelPut
from baseload.domain.model import ModelSpec
from baseload.files import write_whole
from baseload.gateway.admin import PrepareModel
from baseload.gateway.keys import make_key
from baseload.wire.settings import Settings

_log = logging.getLogger("baseload")
GUIDE = "guide"
GUIDE_FOLDER = Path(baseload.__file__).parent / "models" / GUIDE


async def ensure_admin_key(control: Control, path: Path) -> bool:
    """Create the first admin key if there is none, and write its secret to `path`; whether it did.

    The file is written before the key is acknowledged: a kill in between leaves a useless secret, never a lost one.
    """
    if has_admin(control):
        return False
    key, secret = make_key("first key", now_ns=control.now_ns(), is_admin=True)
    write_whole(path, [secret.encode("ascii"), b"\n"], is_durable=True, mode=0o600)
    await control.acknowledge(KeyCreated(key))
    return True


def has_admin(control: Control) -> bool:
    """Whether somebody can administer."""
    keys = control.keys()
    return any(key.is_admin for key in keys)


async def ensure_models(control: Control, settings: Settings, *, prepare: PrepareModel = check_model) -> None:
    """Add or change the models of the settings, and at the first start `guide`. Comes before `ensure_admin_key`."""
    is_first = not has_admin(control)
    for spec in wanted(control, settings, is_first=is_first):
        try:
            checked = await prepare(spec)
        except (ModelError, SettingsError) as error:
            raise SettingsError(
                f"The model {spec.name} of the settings cannot be served: {error.message}", hint=error.hint
            ) from error
        await control.acknowledge(ModelPut(checked))
        _log.info("Model %s is served from %s.", spec.name, spec.source)


def wanted(control: Control, settings: Settings, *, is_first: bool) -> list[ModelSpec]:
    """The specs that differ from what the journal holds."""
    specs = list(settings.models)
    if GUIDE not in [spec.name for spec in specs]:
        specs += _guide(control, settings, is_first=is_first)
    return [spec for spec in specs if not _is_same(spec, control.model(spec.name))]


def _is_same(spec: ModelSpec, known: ModelSpec | None) -> bool:
    """Equal but for the context length, which the folder says."""
    return known is not None and msgspec.structs.replace(known, context_tokens=spec.context_tokens) == spec


def _guide(control: Control, settings: Settings, *, is_first: bool) -> list[ModelSpec]:
    """The shipped model: at the first start, and again where its folder has moved with the installation."""
    if not settings.guide or not (GUIDE_FOLDER / "config.json").is_file():
        return []
    known = control.model(GUIDE)
    if known is None:
        if not is_first:
            return []  # it was removed
        defaults = settings.defaults
        return [
            ModelSpec(
                name=GUIDE,
                source=str(GUIDE_FOLDER),
                scaling=defaults.scaling,
                admission=defaults.admission,
                engine=defaults.engine,
                price=defaults.price,
            )
        ]
    if known.is_remote or (Path(known.source) / "config.json").is_file():
        return []
    return [msgspec.structs.replace(known, source=str(GUIDE_FOLDER))]
