"""Where administration is asked: a running control over HTTP, or the data folder itself when none runs."""

from collections.abc import Sequence
from typing import Protocol

from baseload.cli.model_check import check_model
from baseload.core.ports import Control, JournalRow, UsageRow
from baseload.domain.errors import BaseloadError
from baseload.domain.events import KeyCreated, KeyRevoked, ModelPut, ModelRemoved
from baseload.domain.model import ModelSpec
from baseload.domain.status import ControlStatus
from baseload.domain.tenant import KeyLimits, ShownKey
from baseload.domain.work import Tier
from baseload.gateway.keys import make_key


class Desk(Protocol):
    """The administration calls behind the commands. A change is durable when its call returns."""

    is_running: bool  # whether a control process answers, or the data folder was opened without one

    async def status(self) -> ControlStatus:
        """Everything at this instant."""

    async def models(self) -> Sequence[ModelSpec]:
        """All models."""

    async def put_model(self, spec: ModelSpec) -> None:
        """Add a model, or replace the one of that name."""

    async def remove_model(self, name: str) -> None:
        """Remove a model: its queue is refused, its replicas drain."""

    async def keys(self) -> Sequence[ShownKey]:
        """All keys that are not revoked."""

    async def create_key(
        self, name: str, *, is_admin: bool, models: Sequence[str], limits: KeyLimits, tier: Tier = Tier.DEFAULT
    ) -> tuple[ShownKey, str]:
        """A new key and its secret, which is never shown again."""

    async def revoke_key(self, key_id: str) -> None:
        """Revoke a key."""

    async def usage(self, *, from_day: str = "", to_day: str = "") -> Sequence[UsageRow]:
        """Usage by day, key and model."""

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> Sequence[JournalRow]:
        """The newest journal records, oldest first."""


class LocalDesk:
    """A desk on a control in this process."""

    is_running = False

    def __init__(self, control: Control) -> None:
        self._control = control

    async def status(self) -> ControlStatus:
        """Everything at this instant."""
        return self._control.status()

    async def models(self) -> Sequence[ModelSpec]:
        """All models."""
        return self._control.models()

    async def put_model(self, spec: ModelSpec) -> None:
        """Check the model's folder, then add it, or replace the one of that name."""
        await self._control.acknowledge(ModelPut(await check_model(spec)))

    async def remove_model(self, name: str) -> None:
        """Remove a model."""
        if self._control.model(name) is None:
            raise unknown_model(name, self._control.models())
        await self._control.acknowledge(ModelRemoved(name))

    async def keys(self) -> Sequence[ShownKey]:
        """All keys that are not revoked."""
        found = self._control.keys()
        return [ShownKey.of(key) for key in found]

    async def create_key(
        self, name: str, *, is_admin: bool, models: Sequence[str], limits: KeyLimits, tier: Tier = Tier.DEFAULT
    ) -> tuple[ShownKey, str]:
        """A new key and its secret."""
        for model in models:
            if self._control.model(model) is None:
                raise unknown_model(model, self._control.models())
        key, secret = make_key(
            name, now_ns=self._control.now_ns(), is_admin=is_admin, models=models, limits=limits, tier=tier
        )
        await self._control.acknowledge(KeyCreated(key))
        return ShownKey.of(key), secret

    async def revoke_key(self, key_id: str) -> None:
        """Revoke a key."""
        if key_id not in [key.key_id for key in await self.keys()]:
            raise unknown_key(key_id)
        await self._control.acknowledge(KeyRevoked(key_id))

    async def usage(self, *, from_day: str = "", to_day: str = "") -> Sequence[UsageRow]:
        """Usage by day, key and model."""
        return await self._control.usage(from_day=from_day, to_day=to_day)

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> Sequence[JournalRow]:
        """The newest journal records, oldest first."""
        return await self._control.events(after_seq=after_seq, limit=limit, kind=kind, model=model)


def unknown_model(name: str, models: Sequence[ModelSpec]) -> BaseloadError:
    """The error for a name that no model has."""
    known = ", ".join(spec.name for spec in models) or "none yet"
    return BaseloadError(f"There is no model {name}.", hint=f"The models are: {known}.")


def unknown_key(key_id: str) -> BaseloadError:
    """The error for an id that no key has."""
    return BaseloadError(f"There is no key {key_id}.", hint="`baseload keys list` shows the ids.")
