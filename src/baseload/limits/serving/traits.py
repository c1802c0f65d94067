"""What a point has in common with others, and so may share departures of parameters with: its traits.

A trait is a word such as `engine=vllm` or `generation=blackwell`; each carries a small additive correction to the
logarithms of some PARAMETERS. A point with traits never seen has none of their corrections: it is the sheet and
the global values alone.
"""

from collections.abc import Sequence

import numpy as np

from baseload.limits.serving.features import weights_of
from baseload.limits.serving.points import Point
from baseload.limits.serving.step import INDEX, PARAMETERS
from baseload.limits.shapes import ModelShape

_GENERATIONS = (
    ("gb10", "blackwell_client"),  # half the peaks a byte of memory: kernels and bottlenecks are others
    ("rtx_50", "blackwell_client"),
    ("rtx_pro", "blackwell_client"),
    ("jetson_agx_thor", "blackwell_client"),
    ("gb", "blackwell"),
    ("b2", "blackwell"),
    ("b3", "blackwell"),
    ("rubin", "rubin"),
    ("h1", "hopper"),
    ("h2", "hopper"),
    ("h8", "hopper"),
    ("gh200", "hopper"),
    ("a100", "ampere"),
    ("a800", "ampere"),
    ("a30", "ampere"),
    ("a10", "ampere_client"),
    ("a40", "ampere_client"),
    ("a6000", "ampere_client"),
    ("rtx_30", "ampere_client"),
    ("jetson_agx_orin", "ampere_client"),
    ("l4", "ada"),
    ("l20", "ada"),
    ("rtx_40", "ada"),
    ("rtx_6000_ada", "ada"),
    ("v100", "volta"),
    ("t4", "turing"),
    ("mi2", "cdna2"),
    ("mi30", "cdna3"),
    ("mi32", "cdna3"),
    ("mi35", "cdna4"),
    ("tpu", "tpu"),
    ("gaudi", "gaudi"),
    ("trainium", "neuron"),
    ("inferentia", "neuron"),
    ("m1", "apple"),
    ("m2", "apple"),
    ("m3", "apple"),
    ("m4", "apple"),
    ("m5", "apple"),
    ("xeon", "cpu"),
    ("epyc", "cpu"),
)
_ENGINE = ("launch_s", "host_s", "row_s", "expert_read", "kv_read", "message_s", "prefill_dense", "prefill_expert",
           "interference", "aligned", "first_s", "pool", "dense_read")  # fmt: skip
_SILICON = ("launch_s", "dense_read", "dense_math", "expert_read", "expert_math", "kv_read", "kv_math", "link",
            "message_s", "prefill_dense", "prefill_expert", "prefill_pairs")  # fmt: skip
_DENSE = ("dense_read", "dense_math", "prefill_dense")
_EXPERT = ("expert_read", "expert_math", "prefill_expert")
_KIND = (
    "pace",
    "launch_s",
    "host_s",
    "dense_read",
    "dense_math",
    "kv_read",
    "message_s",
    "interference",
    "prefill_dense",
    "aligned",
)

_GROUP = tuple(name for name in PARAMETERS if name != "pace")


def traits_of(point: Point, shape: ModelShape) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(trait, the parameters it may correct), from the general to the particular."""
    q = weights_of(point, shape)
    generation = generation_of(point.system)
    kind = "moe" if shape.moe_layers else "dense"
    unpacked = (
        q.experts == "int4" or q.dense == "int4" or (q.experts == "mxfp4" and not generation.startswith("blackwell"))
    )
    return (
        (f"engine={point.engine}", _ENGINE),
        (f"generation={generation}", _SILICON),
        (f"kind={kind}", _KIND),
        (f"dense={q.dense}", _DENSE),
        *((("unpacked", ("expert_read", "dense_read", "expert_math", "prefill_expert")),) if unpacked else ()),
        *(((f"unpacked,generation={generation}", ("expert_read", "dense_read")),) if unpacked else ()),
        (f"experts={q.experts}", _EXPERT),
        (f"dense={q.dense},generation={generation}", _DENSE),
        (f"experts={q.experts},generation={generation}", _EXPERT),
        (f"engine={point.engine},kind={kind}", _KIND),
        (f"engine={point.engine},mode={point.mode}", ("host_s", "launch_s", "first_s", "pool", "aligned")),
        (f"version={point.engine}/{point.version},family={point.family}", ("pace", "first_s", "aligned")),
        (
            f"engine={point.engine},family={point.family}",
            ("launch_s", "expert_read", "prefill_dense", "prefill_expert", "first_s", "aligned"),
        ),
        (
            f"engine={point.engine},attention={'dp' if point.decode.dp > 1 else 'tp'}",
            ("host_s", "row_s", "first_s", "aligned", "interference", "link", "expert_read"),
        ),
        (f"system={point.system},engine={point.engine}", _GROUP),
        (f"group={point.system}/{point.engine}/{point.family}/{point.mode}", _GROUP),
        *(((build_of(point), ("pace",)),) if point.mode == "agg" else ()),
    )


def build_of(point: Point) -> str:
    """The trait of one engine build with one model and format on one accelerator."""
    return f"build={point.system}/{point.engine}/{point.version}/{point.family}/{point.format}"


def generation_of(system: str) -> str:
    """The silicon's generation, as far as its name tells; else the name itself."""
    name = system.lower()
    for prefix, generation in _GENERATIONS:
        if name.startswith(prefix):
            return generation
    return name


class Design:
    """Columns of corrections: one per (trait, parameter) met."""

    def __init__(self, columns: Sequence[tuple[str, str]]) -> None:
        self.columns = tuple(columns)
        self._at = {column: i for i, column in enumerate(self.columns)}
        self.parameter = np.array([INDEX[parameter] for _, parameter in self.columns], dtype=np.int64)

    @classmethod
    def over(cls, rows: Sequence[tuple[tuple[str, tuple[str, ...]], ...]]) -> "Design":
        """The design that gives each trait met its corrections; accelerator-and-engine groups come last."""
        met = dict.fromkeys(
            (trait, parameter) for row in rows for trait, parameters in row for parameter in parameters
        )
        return cls(sorted(met, key=lambda column: (column[0].startswith("system="), column)))

    def matrix(
        self, rows: Sequence[tuple[tuple[str, tuple[str, ...]], ...]]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Points × columns, ones where a point has the trait."""
        matrix = np.zeros((len(rows), len(self.columns)))
        for i, row in enumerate(rows):
            for trait, parameters in row:
                for parameter in parameters:
                    j = self._at.get((trait, parameter))
                    if j is not None:
                        matrix[i, j] = 1.0
        return matrix
