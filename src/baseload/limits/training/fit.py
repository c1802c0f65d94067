"""The training step as a form to calibrate: its rates, what is believed of them, and how they make a time.

Beside the `Rates` of a step there is a `pace`, by which software releases and sites differ overall.
"""

from collections.abc import Sequence

import numpy as np

from baseload.limits.ridge import Floats, Form
from baseload.limits.training.step import Cost, Rates

RATES = ("math", "attention", "link", "memory", "latency_s", "far", "launch_s", "exposed", "host_s", "tail_s")
COLUMNS = tuple(Cost.__struct_fields__)
WIDTHS = {
    "all": dict.fromkeys(RATES, 0.25) | {"pace": 0.02, "far": 0.15, "tail_s": 0.5},
    "kind": {
        "math": 0.8,
        "launch_s": 0.25,
        "host_s": 0.7,
        "exposed": 0.25,
        "attention": 0.2,
        "memory": 0.25,
        "tail_s": 0.7,
    },
    "benchmark": {"math": 0.35, "host_s": 0.5, "launch_s": 0.2, "tail_s": 0.5},
    "vendor": {"math": 0.25, "attention": 0.2, "launch_s": 0.3},
    "silicon": {"math": 0.25, "attention": 0.1, "launch_s": 0.15},
    "accelerator": {"math": 0.06, "attention": 0.1, "link": 0.15, "host_s": 0.2},
    "pair": {"math": 0.12, "host_s": 0.15},
    "release": {"pace": 0.08},
    "site": {"pace": 0.1, "host_s": 0.2, "tail_s": 0.3},
    "site_kind": {"pace": 0.05, "host_s": 1.5},
    "uncounted": {"math": 5.0},
}
"""Kinds of trait: the kind of benchmark and the benchmark, the vendor's for that kind, its silicon (equal peaks), the
accelerator, it with the benchmark, the software's release, the site, it with the kind of benchmark, and what nobody
counted."""


def time(costs: Floats, theta: Floats) -> Floats:
    """Seconds of a step, one per row; `costs` as `table` gives them. The same sum as `step.seconds`."""
    p = {name: np.exp(theta[:, i]) for i, name in enumerate(FORM.names)}
    c = {name: costs[:, i] for i, name in enumerate(COLUMNS)}
    near = p["latency_s"]
    traffic = c["traffic_s"] / p["link"] + (c["messages"] + c["far_messages"] * p["far"]) * near
    each = c["math_s"] / p["math"] + c["attention_s"] / p["attention"] + traffic + c["launches"] * p["launch_s"]
    sync = c["sync_s"] / p["link"] + (c["sync_messages"] + c["sync_far_messages"] * p["far"]) * near
    busy = each * (c["microbatches"] + c["bubble"])
    seen = np.minimum(1.0, p["exposed"]) * sync
    whole = (busy + seen + c["optimizer_s"] / p["memory"] + p["host_s"] + p["tail_s"] * c["spread"]) / p["pace"]
    return np.asarray(whole, dtype=np.float64)


FORM = Form(priors={**{name: float(getattr(Rates(), name)) for name in RATES}, "pace": 1.0}, widths=WIDTHS, time=time)


def table(costs: Sequence[Cost]) -> Floats:
    """Costs as a matrix, a row each."""
    cells = [[getattr(cost, name) for name in COLUMNS] for cost in costs]
    return np.array(cells, dtype=np.float64).reshape(len(costs), len(COLUMNS))


def rates_of(theta: Floats, *, basis: str) -> Rates:
    """One point's row of log rates, its pace spread over them."""
    p = {name: float(np.exp(theta[i])) for i, name in enumerate(FORM.names)}
    pace = p.pop("pace")
    for name in ("latency_s", "launch_s", "host_s", "tail_s"):
        p[name] /= pace
    for name in ("math", "attention", "link", "memory"):
        p[name] *= pace
    p["exposed"] = min(1.0, p["exposed"])
    return Rates(basis=basis, **p)
