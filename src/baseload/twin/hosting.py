"""What simulated replicas run on: one step-time table for all, or hardware from the catalogue for each model."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from baseload.domain.errors import DataError, SettingsError
from baseload.domain.model import ModelSpec
from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.catalogue.models import Models
from baseload.limits.serving.replica import StepCost, step_cost
from baseload.limits.shape_config import parse_config
from baseload.limits.shapes import ModelShape
from baseload.limits.step_time import StepTimeTable, default_table, parse_json, parse_toml
from baseload.twin.costs import Costs, ReplicaCosts, TableCosts
from baseload.twin.pools import UnitCost
from baseload.twin.spec import Hardware, Physics


class Fleet:
    """Costs and KV room by model; `costs` given by hand go before what the specification names."""

    def __init__(
        self,
        physics: Physics,
        hardware: Mapping[str, Hardware],
        *,
        base: Path | None = None,
        costs: Mapping[str, StepCost | UnitCost] | None = None,
    ) -> None:
        self._kv_tokens = physics.kv_tokens
        self._default: Costs = TableCosts(load_table(physics, base))
        self.step_costs: dict[str, StepCost | UnitCost] = {
            name: _cost(chosen, name, base) for name, chosen in hardware.items()
        }
        self.step_costs |= costs or {}
        self._costs: dict[str, Costs] = {
            name: ReplicaCosts(cost if isinstance(cost, StepCost) else cost.decode)
            for name, cost in self.step_costs.items()
        }
        self._hardware = hardware

    def costs_of(self, spec: ModelSpec) -> Costs:
        """What steps of a replica of this model take."""
        return self._costs.get(spec.name, self._default)

    def kv_tokens_of(self, spec: ModelSpec) -> int:
        """KV positions of one replica."""
        cost = self.step_costs.get(spec.name)
        return self._kv_tokens if cost is None else max(1, cost.kv_tokens)

    def unit_of(self, spec: ModelSpec) -> UnitCost | None:
        """What its steps take where prefill and decode are apart; None: they are not."""
        cost = self.step_costs.get(spec.name)
        return cost if isinstance(cost, UnitCost) else None

    def accelerators_of(self, model: str) -> int:
        """Accelerators of one replica; 1 where only a table of step times is known."""
        cost = self.step_costs.get(model)
        return 1 if cost is None else cost.accelerators

    def basis_of(self, models: list[str]) -> str:
        """What the step times rest on."""
        units = {name: cost.basis for name, cost in self.step_costs.items() if isinstance(cost, UnitCost)}
        bases = dict.fromkeys(units.get(name) or self._costs.get(name, self._default).basis for name in models)
        return "; ".join(bases)

    def priced(self, spec: ModelSpec) -> ModelSpec:
        """The model with the price and power of its hardware, where that is known."""
        cost, chosen = self.step_costs.get(spec.name), self._hardware.get(spec.name)
        price = spec.price
        if cost is not None and cost.busy_w > 0:
            price = msgspec.structs.replace(price, busy_w=cost.busy_w, idle_w=cost.idle_w)
        if cost is not None and chosen is not None and chosen.usd_per_accelerator_hour > 0:
            price = msgspec.structs.replace(price, usd_per_hour=chosen.usd_per_accelerator_hour * cost.accelerators)
        return msgspec.structs.replace(spec, price=price)


def load_table(physics: Physics, base: Path | None) -> StepTimeTable:
    """The step-time table that `physics` names; a relative path starts at `base` (the spec's folder)."""
    if physics.step_time is not None:
        return StepTimeTable(physics.step_time, name="physics.step_time")
    if not physics.step_time_file:
        return default_table()
    path = base / physics.step_time_file if base is not None else Path(physics.step_time_file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}.",
            hint="`step_time_file` names a table; [physics.step_time] holds one inline.",
        ) from None
    return (parse_json if path.suffix == ".json" else parse_toml)(data, name=str(path))


def _cost(chosen: Hardware, name: str, base: Path | None) -> StepCost | UnitCost:
    if not chosen.accelerator or not chosen.model:
        raise SettingsError(
            f"hardware.{name}: `model` and `accelerator` are needed.",
            hint='For example: model = "llama-3.1-70b", accelerator = "h100-sxm", tp = 8.',
        )
    if not chosen.model.endswith(".json") and Models().find(chosen.model)[1] != "config":
        raise SettingsError(
            f"hardware.{name}: the catalogue has no model {chosen.model!r}, and its shape would be a guess.",
            hint='Name its config.json instead: `model = "config.json"`, relative to the specification.',
        )
    model = _shape(chosen.model, base)
    decode = _step_cost(chosen, model, chosen.tp)
    if not decode.fits:
        raise SettingsError(
            f"hardware.{name}: {chosen.model} does not fit: {decode.weight_bytes / 1e9:,.0f} GB of weights on each "
            f"of {decode.accelerators} {chosen.accelerator}.",
            hint='Raise tp, pp or ep, keep the weights in fewer bits (weights = "fp8"), or take larger ones.',
        )
    if not chosen.prefill_workers:
        return decode
    prefill = _step_cost(chosen, model, chosen.prefill_tp) if chosen.prefill_tp else decode
    shape = model if isinstance(model, ModelShape) else Models().find(model)[0]
    element, per_s = decode.parts.counts.kv_element_bytes, _link_bytes_per_s(chosen, prefill, decode)
    return UnitCost(
        prefill=prefill,
        decode=decode,
        prefill_workers=chosen.prefill_workers,
        decode_workers=chosen.decode_workers,
        transfer_ns=lambda tokens: round(shape.kv_bytes(tokens, element) / per_s * 1e9),
    )


def _link_bytes_per_s(chosen: Hardware, prefill: StepCost, decode: StepCost) -> float:
    """At which a cache goes over: as told, or by the network adapters of the smaller of the two workers."""
    if chosen.kv_gb_per_s > 0:
        return chosen.kv_gb_per_s * 1e9
    chip = read_catalogue().find(chosen.accelerator)
    return chip.need("scale_out_gbit_per_s") / 8.0 * 1e9 * min(prefill.accelerators, decode.accelerators)


def _step_cost(chosen: Hardware, model: ModelShape | str, tp: int) -> StepCost:
    return step_cost(
        model,
        chosen.accelerator,
        engine=chosen.engine,
        version=chosen.version,
        tp=tp,
        dp=chosen.dp,
        ep=chosen.ep,
        pp=chosen.pp,
        cp=chosen.cp,
        weights=chosen.weights,
        expert_weights=chosen.expert_weights,
        memory_share=chosen.memory_share,
        typical_tokens=chosen.typical_tokens,
    )


def _shape(model: str, base: Path | None) -> ModelShape | str:
    """A config.json's shape, or the name of a model of the catalogue."""
    if not model.endswith(".json"):
        return model
    path = base / model if base is not None else Path(model)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}.", hint="`model` names a model's config.json."
        ) from None
    return parse_config(data, name=str(path))
