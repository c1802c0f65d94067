"""Pipeline-parallel serving on top of step costs: a batch is cut into as many parts as there are stages.

Each part passes all stages in the time the whole model would take on one stage's accelerators, and all parts are
under way at once. So a token takes the time of a part, and others wait for a prompt only while it is in one stage.
"""

from dataclasses import dataclass, replace

from baseload.limits.serving.mixed import FS, Parts
from baseload.limits.serving.replica import StepCost

MOST_STAGES = 4


@dataclass(frozen=True, slots=True)
class Stages(Parts):
    """Coefficients of a pipeline: `counts` and `p` are those of the whole model on one stage's accelerators."""

    stages: int = 1

    def line(self, rows: int) -> tuple[int, int]:
        """Of a decode step of the whole batch; see `StepCost.decode_line`."""
        fixed, slope = Parts.line(self, -(-rows // self.stages))
        return fixed + round(self._hops_s() * FS), slope // self.stages

    def mixed_s(self, tokens: float, pairs: float, rows: float, context: float, prompts: float) -> float:
        """Seconds from token to token for those who decode beside the prompt."""
        part, seen = max(1.0, rows / self.stages), context / self.stages
        alone = Parts.mixed_s(self, 0.0, 0.0, part, seen, 0.0) if rows else 0.0
        both = Parts.mixed_s(self, tokens, pairs, part if rows else 0.0, seen, prompts)
        return (alone + (both - alone) / self.stages if rows else both) + self._hops_s()

    def _hops_s(self) -> float:
        return (self.stages - 1) * self.p["message_s"] * self.p["outside"]


def pipelined(whole: StepCost, stage: StepCost, stages: int) -> StepCost:
    """The cost of `stages` stages: memory and power of the `whole` layout, times from one `stage`'s accelerators."""
    cut = (
        stage.parts.counts.kv_cut * stages / whole.parts.counts.kv_cut
    )  # each stage holds its own layers' cache only
    return replace(
        whole,
        kv_tokens=int(whole.kv_tokens * cut),
        max_sequences=int(whole.max_sequences * cut),
        lines=(),
        parts=Stages(stage.parts.counts, stage.parts.p, stage.parts.output_tokens, stages),
    )
