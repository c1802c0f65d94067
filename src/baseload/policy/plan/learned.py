"""What twin runs taught of the ways to serve a model: how much of the formula's greatest load each really carries.

A way is an option (accelerator, weight format, layout, mode, step budget) at a distance from its clients. One that
was run has a share of its own: 1 where the formula's greatest load kept the levels, less where fewer requests had to
come. Others of the same model, accelerator, layout and mode (in another weight format, or with another step budget)
are taken to carry no larger share, until they are run themselves.
"""

from dataclasses import dataclass, field

from baseload.policy.plan.options import Option
from baseload.policy.plan.spec import Levels, ServedModel

Key = tuple[str, int, float]  # model, identity of the option, milliseconds from the clients


@dataclass(slots=True)
class Learned:
    """Shares by way. Mutable: each twin run adds to it. `only_run`: what was not run, is not to be chosen."""

    only_run: bool = False
    _shares: dict[Key, float] = field(default_factory=dict)
    _kinds: dict[tuple[str, ...], float] = field(default_factory=dict)
    _failed: dict[tuple[Key, Levels], None] = field(default_factory=dict)

    def share(self, model: ServedModel, option: Option, network_ms: float) -> float:
        """Of the formula's greatest load that it may be given; 0: none."""
        key = _key(model, option, network_ms)
        if (key, model.levels) in self._failed:
            return 0.0
        if key in self._shares:
            return self._shares[key]
        return 0.0 if self.only_run else self._kinds.get(_kind(model, option), 1.0)

    def kept(self, model: ServedModel, option: Option, network_ms: float, share: float) -> None:
        """A run at this share kept the levels."""
        self._shares[_key(model, option, network_ms)] = share
        kind = _kind(model, option)
        self._kinds[kind] = min(share, self._kinds.get(kind, 1.0))

    def failed(self, model: ServedModel, option: Option, network_ms: float, share: float) -> None:
        """No run kept the levels, the last of them at this share: not to be chosen under these levels."""
        key = _key(model, option, network_ms)
        self._shares[key] = share
        self._failed[key, model.levels] = None


def _key(model: ServedModel, option: Option, network_ms: float) -> Key:
    return model.name, id(option), network_ms


def _kind(model: ServedModel, option: Option) -> tuple[str, ...]:
    return model.name, option.accelerator, option.layout, option.mode
