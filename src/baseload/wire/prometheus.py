"""Prometheus' text format: histograms, samples and their heads, for gateway and worker alike."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Sequence[tuple[str, str]]


class Histogram:
    """Counts of values by upper bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: Labels) -> Iterator[str]:
        """The samples, cumulative as Prometheus wants them."""
        seen = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            seen += count
            le = "+Inf" if bound is None else f"{float(bound)}"
            yield sample(f"{name}_bucket", seen, (*labels, ("le", le)))
        yield sample(f"{name}_sum", self.total, labels)
        yield sample(f"{name}_count", seen, labels)


def head(name: str, kind: str, text: str) -> tuple[str, str]:
    """The two lines before a metric's samples; `kind` is counter, gauge or histogram."""
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def sample(name: str, value: float, labels: Labels) -> str:
    """One line of the exposition."""
    if not labels:
        return f"{name} {value}"
    inner = ",".join([f'{key}="{_escape(text)}"' for key, text in labels])
    return f"{name}{{{inner}}} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
