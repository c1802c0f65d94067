"""What a step of a recorded engine takes: the counts of `limits.serving.features`, and how vLLM's kernels run them.

A replay is held to each request of a run, so it needs what a table of closed loops averages over:

    step    = host + launches (· more where no recorded graph runs) + collectives + slowest rank + experts + links
    rank    = max(dense read, dense math) + cache read · beside + pairs of prompts + rows · row
    experts = read of those met + math, for the tokens of all ranks: their kernel hides neither behind the other

* Steps that only decode replay a recorded graph, padded to the next size there is one of; padding goes to experts and
  over links as tokens do. Where one rank of several has a prompt, none replays its graph.
* In a step with prompts, decoding rows go through the attention kernel of prompts, which reads the cache once for
  each part of a group of query heads: `heads a cached head serves` ** `regroup` times. Latent attention, and the
  engines of Blackwell's data-centre parts, have a kernel for each and do not pay it.
* Ranks of attention share the experts: they wait for each other, and all tokens of the fullest one cross the links.

`USUAL` is what is believed of any accelerator, `WIDTHS` how far a run may move it (in logarithms). Where `USUAL`
comes from is told in docs/limits.md, section Replay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_values
from math import cbrt, exp, log, sqrt

from msgspec.structs import replace

from baseload.limits.serving.features import LEAST_ROOM, MEMORY_MOST, Counts, counts_of, weights_of
from baseload.limits.serving.points import Layout, Point
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.step import INDEX
from baseload.limits.serving.traits import generation_of
from baseload.limits.shapes import ModelShape
from baseload.twin.recorded import EngineSettings

USUAL = {
    "host_s": 0.5e-3,  # a step's work that nothing hides: inputs up, tokens sampled
    "launch_s": 22e-6,  # a layer's kernels, from a graph
    "eager_s": 60e-6,  # besides, without one
    "message_s": 7.2e-6,  # a collective's latency on fast links
    "dense_read": 0.86,  # fractions of the sheet's peaks
    "dense_math": 0.68,
    "kv_read": 0.84,
    "prefill_pairs": 0.50,
    "row_s": 6e-6,
    "expert_read": 0.90,
    "expert_math": 0.43,
    "alike": 0.95,  # tokens choose experts alike: so many count as their power of this
    "link": 0.33,
    "regroup": 0.38,  # see above
}
WIDTHS = {
    "host_s": 0.4,
    "launch_s": 0.3,
    "eager_s": 0.4,
    "message_s": 0.3,
    "dense_read": 0.06,
    "dense_math": 0.1,
    "kv_read": 0.07,
    "prefill_pairs": 0.2,
    "row_s": 0.5,
    "expert_read": 0.12,
    "expert_math": 0.25,
    "alike": 0.05,
    "link": 0.2,
    "regroup": 0.12,
}
KV_MATH, STATE = 0.33, 0.6  # of the peaks: latent attention's products, states of linear attention
OUTSIDE = 3.0  # how many times a collective's latency is across nodes what it is inside the fast domain
RESERVED_GB = 1.5  # of an accelerator's memory, for activations and the runtime
BINARY = {"NVIDIA": 1.0668, "AMD": 1.0725}  # bytes there are for each 1e9 on the sheet: vendors count by 2**30
_FORMAT_OF = {"dense_read": "dense_read", "dense_math": "prefill_dense", "expert_read": "expert_read",
              "expert_math": "prefill_expert"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """What one rank of attention does in a step."""

    tokens: int  # of prompts
    pairs: int  # of such a token and an earlier position
    rows: int  # that decode
    context_tokens: int  # positions they read
    prompts: int


@dataclass(frozen=True, slots=True)
class ReplayCost:
    """Step times of a recorded deployment, in integer nanoseconds, at least 1."""

    counts: Counts
    p: Mapping[str, float]
    beside: float  # how many times decoding rows' cache is read in a step with prompts
    captured: int  # tokens of the largest recorded graph; 0: none
    kv_tokens: int  # room of all ranks together
    note: str

    @property
    def lockstep(self) -> bool:
        """Whether replicas of attention wait for each other at every step: they share experts."""
        return self.counts.experts is not None

    def step_ns(self, loads: Sequence[Load]) -> int:
        """A step of all ranks, one load each (an idle rank's is all zeros)."""
        return max(1, round(self.step_s(loads) * 1e9))

    def step_s(self, loads: Sequence[Load]) -> float:
        """The same in seconds."""
        p, c = self.p, self.counts
        fullest = max([load.tokens + load.rows for load in loads])
        tokens = sum([load.tokens + load.rows for load in loads])
        eager = fullest > self.captured or any(load.tokens for load in loads)
        if not eager:
            fullest = _captured(fullest)
            tokens = len(loads) * fullest
        far = OUTSIDE if c.outside else 1.0
        fixed = p["host_s"] + c.layers * p["launch_s"] + c.messages * p["message_s"] * far
        fixed += c.layers * p["eager_s"] if eager else 0.0
        links = len(loads) * fullest * (c.link_s + c.merge_s) / p["link"]
        return fixed + max([self._rank_s(load, len(loads)) for load in loads]) + self._experts_s(tokens) + links

    def _rank_s(self, load: Load, ranks: int) -> float:
        """Dense layers and attention. Counts are of all accelerators: a rank's tokens weigh `ranks` times as much."""
        p, c = self.p, self.counts
        math = (load.tokens + load.rows) * c.dense_math_s + (load.rows + load.prompts) * c.head_math_s
        dense = _max(c.dense_read_s / p["dense_read"], ranks * math / p["dense_math"])
        read = work = pairs = 0.0
        for a in c.attention:
            seen = min(load.context_tokens, load.rows * a.window) if a.window else load.context_tokens
            read, work = read + a.read_s * seen, work + a.math_s * seen
            pairs += a.pair_s * (min(load.pairs, load.tokens * a.window) if a.window else load.pairs)
        pairs += load.tokens * c.state_math_s
        states = load.rows * c.state_read_s / STATE
        beside = self.beside if load.tokens else 1.0
        attend = max(beside * read / p["kv_read"], work / KV_MATH) + states + pairs / p["prefill_pairs"]
        return dense + ranks * attend + load.rows * p["row_s"]

    def _experts_s(self, tokens: int) -> float:
        e, p, ep = self.counts.experts, self.p, self.counts.ep
        if e is None or not tokens:
            return 0.0
        covered = e.covered(tokens ** p["alike"])
        uneven = sqrt(2.0 * log(ep) * ep * covered * (1.0 - covered / e.experts))
        met = min(float(e.experts), covered + uneven)
        return e.read_s * met / p["expert_read"] + e.math_s * tokens / p["expert_math"]


def replay_cost(
    shape: ModelShape,
    accelerator: str,
    settings: EngineSettings,
    predictor: Predictor,
    moved: Mapping[str, float],
) -> ReplayCost:
    """Step costs of a recorded deployment; `moved` are logarithms by which parameters differ from `USUAL`.

    DataError where the catalogue lacks the accelerator or a figure of it.
    """
    s, chip = settings, predictor.catalogue.find(accelerator)
    alone = (
        not shape.moe_layers
    )  # without experts to share, data-parallel replicas have nothing to do with each other
    dp = 1 if alone else s.dp
    layout = Layout(gpus=s.tp * dp * s.pp, dp=dp, ep=1 if alone else max(s.ep, 1), pp=s.pp)
    point = Point(
        line=0, id="", engine=s.engine, version=s.version, model=shape.name, system=accelerator,
        dense_format=s.weights, expert_format=s.weights, isl=2048, osl=1, concurrency=1.0, decode=layout,
    )  # fmt: skip
    counts = _cached_in(s.kv_bytes, counts_of(shape, weights_of(point, shape), chip, layout))
    formats = _of_format(point, shape, predictor)
    p = {name: value * exp(moved.get(name, 0.0) + formats.get(name, 0.0)) for name, value in USUAL.items()}
    memory = chip.need("memory_gb") * 1e9 * BINARY.get(chip.vendor, 1.0)
    room = max(memory * s.memory_share - counts.weight_bytes - RESERVED_GB * 1e9, memory * LEAST_ROOM)
    length = 2048  # sequences' usual length: windows and states cost by the sequence
    per_token = max(1.0, shape.kv_bytes(length, counts.kv_element_bytes) / counts.kv_cut) / length
    fits = counts.weight_bytes <= memory * MEMORY_MOST
    return ReplayCost(
        counts=counts,
        p=p,
        beside=_beside(shape, predictor.chips.identifier(accelerator), p["regroup"]),
        captured=s.captured,
        kv_tokens=int(room / per_token) * (s.dp if alone else 1),
        note="" if fits else "weights exceed the memory of the accelerators",
    )


def _cached_in(kv_bytes: float, counts: Counts) -> Counts:
    """With cached elements of so many bytes (0: what is usual beside such weights)."""
    times = kv_bytes / counts.kv_element_bytes
    if times in (0.0, 1.0):
        return counts
    attention = tuple(with_values(a, read_s=a.read_s * times) for a in counts.attention)
    return with_values(counts, attention=attention, kv_element_bytes=kv_bytes)


def _beside(shape: ModelShape, accelerator: str, regroup: float) -> float:
    mixer = next((m for m in shape.mixers if m.kind == "attention" and m.kv_elements), None)
    if mixer is None or generation_of(accelerator) == "blackwell":
        return 1.0
    return float(max(1.0, mixer.pair_flops / 2.0 / mixer.kv_elements) ** regroup)


def _of_format(point: Point, shape: ModelShape, predictor: Predictor) -> dict[str, float]:
    """What the fitted table says narrower weights reach of their peaks, against those of 16 bits (logarithms)."""
    wide = replace(point, dense_format="bf16", expert_format="bf16")
    if weights_of(point, shape) == weights_of(wide, shape):
        return {}
    by = predictor.theta_of(point, shape) - predictor.theta_of(wide, shape)
    return {name: float(by[INDEX[theirs]]) for name, theirs in _FORMAT_OF.items()}


def _captured(tokens: int) -> int:
    """The size of the graph that is replayed: 1, 2, 4, and multiples of eight."""
    if tokens > 4:
        return -(-tokens // 8) * 8
    return 4 if tokens > 2 else tokens


def _max(a: float, b: float) -> float:
    """A smooth maximum, as in `limits.serving.step`."""
    high, low = (a, b) if a >= b else (b, a)
    return high * cbrt(1.0 + (low / high) ** 3) if high > 0 else 0.0
