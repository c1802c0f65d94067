"""What a step of one replica costs, for whoever steps or plans replicas: `step_cost(...)` answers a `StepCost`.

The form and its parameters are those of `step`, in `mixed`: fitted efficiencies on the sheet's peaks. A decode step
is affine in the KV positions it reads for a fixed number of rows, exactly and in integers, so that many steps can be
summed in closed form:

    fixed, slope = cost.decode_line(rows)          # femtoseconds, femtoseconds per KV position
    cost.decode_ns(rows, context) == (fixed + slope * context) // FS_PER_NS

Context is the number of KV positions a step reads, summed over its rows (`Plan.context_tokens` for decodes).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.serving.features import (
    LEAST_ROOM,
    MEMORY_MOST,
    MEMORY_USED,
    MEMORY_USED_ELSE,
    Counts,
    counts_of,
    weights_of,
)
from baseload.limits.serving.mixed import USUAL_OUTPUT, Load, Parts
from baseload.limits.serving.points import Layout, Point
from baseload.limits.serving.power import Watts, watts_of
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.step import PARAMETERS
from baseload.limits.shapes import ModelShape

FS_PER_NS = 1_000_000  # femtoseconds in a nanosecond


@dataclass(frozen=True, slots=True)
class StepCost:
    """Step times of one replica (all its accelerators together). Times are integer nanoseconds, at least 1."""

    basis: str  # what it rests on, as `Prediction.basis`
    note: str  # what is odd: weights that do not fit, a shape guessed
    accelerators: int
    kv_tokens: int  # KV room of the whole replica, in tokens of sequences of `typical_tokens`
    max_sequences: int  # of that length
    weight_bytes: int  # per accelerator
    fits: bool
    typical_tokens: int
    power: Watts  # of the whole replica, by what it does
    lines: tuple[tuple[int, int], ...]  # decode (fixed, slope) in fs by rows, from 0
    parts: Parts

    @property
    def idle_w(self) -> float:
        """Watts of the whole replica with nothing to do (0 where the sheet gives no power)."""
        return self.power.idle_w

    @property
    def busy_w(self) -> float:
        """Watts of the whole replica while it decodes a full batch, or prefills."""
        return self.power.prefill_w

    def decode_line(self, rows: int) -> tuple[int, int]:
        """(fixed, slope) of a decode step in femtoseconds and femtoseconds per KV position."""
        return self.lines[rows] if rows < len(self.lines) else self.parts.line(rows)

    def decode_ns(self, rows: int, context_tokens: int) -> int:
        """A step in which `rows` sequences decode a token each, over `context_tokens` positions in all."""
        fixed, slope = self.decode_line(rows)
        return max(1, (fixed + slope * context_tokens) // FS_PER_NS)

    def prefill_ns(self, tokens: int, context_tokens: int = 0) -> int:
        """A step that computes `tokens` prompt tokens of one sequence that has `context_tokens` in the cache."""
        pairs = tokens * context_tokens + tokens * tokens // 2
        return self.mixed_ns(tokens=tokens, pairs=pairs, rows=0, context_tokens=0)

    def mixed_ns(self, *, tokens: int, pairs: int, rows: int, context_tokens: int, prompts: int = 1) -> int:
        """A step of `tokens` prompt tokens (`pairs` of a token and an earlier position) beside `rows` decodes."""
        if tokens <= 0:
            return self.decode_ns(rows, context_tokens)
        return max(1, round(self.parts.mixed_s(tokens, pairs, rows, context_tokens, prompts) * 1e9))

    def together_ns(self, loads: Sequence[Load]) -> int:
        """A step of replicas of attention (one load each) that meet at the experts: as slow as the fullest."""
        return max(1, round(self.parts.together_s(loads) * 1e9))

    def decode_w(self, rows: int) -> float:
        """Watts of the whole replica while it decodes `rows` sequences of the typical length."""
        if rows <= 0:
            return self.idle_w
        context = rows * self.typical_tokens
        took_s = self.decode_ns(rows, context) / 1e9
        return self.power.decoding(*(busy_s / took_s for busy_s in self.parts.at_peak_s(rows, context)))


def step_cost(
    model: ModelShape | str,
    accelerator: Accelerator | str,
    *,
    engine: str = "vllm",
    version: str = "",
    tp: int = 1,
    dp: int = 1,
    ep: int = 1,
    pp: int = 1,
    cp: int = 1,
    weights: str = "",
    expert_weights: str = "",
    memory_share: float = 0.0,
    typical_tokens: int = 2048,
    output_tokens: float = USUAL_OUTPUT,
    max_rows: int = 512,
    predictor: Predictor | None = None,
) -> StepCost:
    """Cost of the steps of a replica of `tp` × `dp` × `pp` × `cp` accelerators.

    `dp` are attention replicas inside it, `ep` the expert-parallel width, `cp` whole groups that share each context;
    `weights` a format ("" is the model's own). `memory_share` of the memory is used (0: the engine's usual setting).
    Answers of `output_tokens` decide how alike their tokens choose experts. `predictor` carries a catalogue, models
    and calibration; without one the shipped values are read. DataError where a figure is missing.
    """
    predictor = predictor or Predictor()
    shape, origin = (model, "config") if isinstance(model, ModelShape) else predictor.models.find(model)
    name = accelerator if isinstance(accelerator, str) else accelerator.name
    chip = predictor.catalogue.find(accelerator) if isinstance(accelerator, str) else accelerator
    if min(tp, dp, ep, pp, cp, typical_tokens, output_tokens) < 1:
        raise DataError("A replica needs tp, dp, ep, pp and cp of at least 1.", hint="Leave out what is not used.")
    layout = Layout(gpus=tp * dp * pp * cp, dp=dp, ep=ep, pp=pp, cp=cp)
    point = Point(
        line=0, id="", engine=engine, version=version, model=shape.name, system=name, dense_format=weights,
        expert_format=expert_weights or weights, isl=typical_tokens, osl=1, concurrency=1.0, decode=layout,
    )  # fmt: skip
    quantization = weights_of(point, shape)
    counts = counts_of(shape, quantization, chip, layout)
    theta = predictor.theta_of(point, shape)
    parts = Parts(counts, {n: exp(float(v)) for n, v in zip(PARAMETERS, theta, strict=True)}, output_tokens)
    sequences = _sequences(
        shape, chip, counts, memory_share or MEMORY_USED.get(engine, MEMORY_USED_ELSE), typical_tokens
    )
    fits = counts.weight_bytes <= chip.need("memory_gb") * 1e9 * MEMORY_MOST
    notes = [] if fits else ["weights exceed the memory of the accelerators"]
    notes += [] if origin == "config" else ["model shape guessed from its name: give its config.json"]
    return StepCost(
        basis=predictor.basis_of(point),
        note="; ".join(notes),
        accelerators=layout.gpus,
        kv_tokens=int(sequences * typical_tokens),
        max_sequences=int(sequences),
        weight_bytes=int(counts.weight_bytes),
        fits=fits,
        typical_tokens=typical_tokens,
        power=watts_of(chip, layout.gpus),
        lines=tuple(parts.line(rows) for rows in range(max_rows + 1)),
        parts=parts,
    )


def _sequences(shape: ModelShape, chip: Accelerator, counts: Counts, share: float, tokens: int) -> float:
    """Sequences of so many tokens for whose cache there is room beside the weights, in this share of the memory."""
    memory = chip.need("memory_gb") * 1e9
    room = max(memory * share - counts.weight_bytes, memory * LEAST_ROOM)
    return room / max(1.0, shape.kv_bytes(tokens, counts.kv_element_bytes) / counts.kv_cut)
