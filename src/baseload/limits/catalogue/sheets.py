"""What the limits model computes of models, cooling plants and failures, as entries to look at."""

from collections.abc import Mapping

from msgspec import Struct

from baseload.limits.catalogue.accelerators import read_model_facts
from baseload.limits.catalogue.models import Models
from baseload.limits.goodput import CAUSES, RATES, FailureRate
from baseload.limits.power import PLANTS, Cooling
from baseload.limits.shapes import Feedforward, Mixer, ModelShape

LONG = 32_768  # tokens of context that the long figures are for


class ModelSheet(Struct, frozen=True, kw_only=True):
    """A model in figures: billions of parameters, decimal bytes in its own format, FLOPs of one token."""

    name: str
    source: str
    params_b: float
    active_b: float
    layers: int
    mixing: str  # layers that mix tokens, by kind
    experts: str
    weights_gb: float
    kv_kb_per_token: float  # at 16 bits, once windows are full
    kv_gb_at_32k: float  # of one sequence: windows, and states of linear layers
    gflops_per_token: float
    gflops_per_token_at_32k: float
    assumed: str = ""  # what the configuration left open, and how it was read


class PlantSheet(Struct, frozen=True, kw_only=True):
    """A cooling plant: PUE by outside temperature."""

    name: str
    source: str
    pue_0c: float
    pue_10c: float
    pue_20c: float
    pue_30c: float
    pue_40c: float


class FailureSheet(Struct, frozen=True, kw_only=True):
    """A published failure rate: hours between interruptions of a job on so many accelerators, and their causes."""

    name: str
    source: str
    per_accelerator_hour: float
    hours_at_1000: float
    hours_at_16384: float
    hours_at_100000: float
    causes: str


def model_sheet(shape: ModelShape, *, source: str) -> ModelSheet:
    """The figures of a shape."""
    return ModelSheet(
        name=shape.name,
        source=source,
        params_b=_round(shape.params / 1e9),
        active_b=_round(shape.active_params / 1e9),
        layers=shape.layers,
        mixing=", ".join(_mixing(mixer) for mixer in shape.mixers),
        experts=", ".join(_experts(forward) for forward in shape.feedforwards if forward.experts),
        weights_gb=_round(shape.weight_bytes() / 1e9),
        kv_kb_per_token=_round(shape.kv_bytes_per_token() / 1e3),
        kv_gb_at_32k=_round(shape.kv_bytes(LONG) / 1e9),
        gflops_per_token=_round(shape.flops_per_token() / 1e9),
        gflops_per_token_at_32k=_round(shape.flops_per_token(LONG) / 1e9),
        assumed="; ".join(shape.assumed),
    )


def model_sheets() -> dict[str, ModelSheet]:
    """The models built in, by repository."""
    models = Models()
    source = "config.json of that Hugging Face repository"
    return {name: model_sheet(models.find(name)[0], source=source) for name in read_model_facts()}


def plant_sheets(plants: Mapping[str, Cooling] = PLANTS) -> dict[str, PlantSheet]:
    """Cooling plants by name."""
    return {name: _plant(plant) for name, plant in plants.items()}


def failure_sheets(rates: Mapping[str, FailureRate] = RATES) -> dict[str, FailureSheet]:
    """Published failure rates by name; their causes are Llama 3's."""
    causes = ", ".join(f"{cause} {share:.0%}" for cause, share in CAUSES.items())
    return {
        name: FailureSheet(
            name=rate.name,
            source=rate.source,
            per_accelerator_hour=rate.per_accelerator_hour,
            hours_at_1000=_round(rate.mean_time_between_s(1_000) / 3600),
            hours_at_16384=_round(rate.mean_time_between_s(16_384) / 3600),
            hours_at_100000=_round(rate.mean_time_between_s(100_000) / 3600),
            causes=causes,
        )
        for name, rate in rates.items()
    }


def _plant(plant: Cooling) -> PlantSheet:
    at = {f"pue_{c}c": round(plant.at(float(c)), 3) for c in (0, 10, 20, 30, 40)}
    return PlantSheet(name=plant.name, source=plant.basis, **at)


def _mixing(mixer: Mixer) -> str:
    window = f" in {'chunks of ' if mixer.chunked else ''}{mixer.window:,}" if mixer.window else ""
    chosen = f" over {mixer.top_keys:,} keys an index chooses" if mixer.top_keys else ""
    return f"{mixer.layers} {mixer.kind}{window}{chosen}"


def _experts(forward: Feedforward) -> str:
    return f"{forward.top_k} of {forward.experts} in {forward.layers} layers"


def _round(value: float) -> float:
    return float(f"{value:.4g}")
