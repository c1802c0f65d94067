"""What to compute with where the sheet is blank: every row of a table is answered, and told what was put in.

A figure that the catalogue does not have is taken in the ratio that most accelerators have it to one that is known;
an accelerator of which nothing is known is computed as an H100. Each answer names what stands in.
"""

from collections.abc import Sequence
from statistics import median

import msgspec

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, key

LIKE = "h100_sxm"
_KIN = (  # words of a name that tell what kind of thing it is, where the catalogue has nothing nearer
    ("mi2", "mi250"),
    ("mi1", "mi210"),
    ("mi3", "mi300x"),
    ("instinct", "mi300x"),
    ("radeon", "rx_7900_xtx"),
    ("epyc", "epyc_9654"),
    ("xeon", "xeon_8480"),
    ("graviton", "xeon_8480"),
    ("cpu", "xeon_8480"),
    ("jetson", "jetson_agx_orin"),
    ("orin", "jetson_agx_orin"),
    ("tpu", "tpu_v5e"),
    ("gaudi", "gaudi2"),
    ("habana", "gaudi2"),
    ("trainium", "trainium2"),
    ("inferentia", "inferentia2"),
    ("rubin", "gb300"),
    ("apple", "m3_max"),
    ("rtx50", "rtx_5090"),
    ("rtx40", "rtx_4090"),
    ("rtx30", "rtx_3090"),
    ("rtxpro", "rtx_pro_6000"),
    ("rtx", "rtx_3090"),
    ("geforce", "rtx_3090"),
)
_NEEDED = ("bf16_tflops", "memory_gb_per_s", "memory_gb")
_LEAST_LINK_GB_PER_S = 32.0  # PCIe 4, sixteen lanes


class StandIns:
    """Accelerators by name, none refused: `find` answers like a catalogue, `note` says what was put in."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._found: dict[str, tuple[Accelerator, str]] = {}

    def find(self, name: str) -> Accelerator:
        """The accelerator, complete enough to compute with."""
        return self._of(name)[0]

    def note(self, name: str) -> str:
        """What stands in for what; "" where the sheet has all that is needed."""
        return self._of(name)[1]

    def identifier(self, name: str) -> str:
        """The catalogue's own word for it; the name itself where there is none."""
        try:
            chip = self._catalogue.find(name)
        except DataError:
            return name
        return next(id_ for id_, entry in self._catalogue.entries.items() if entry is chip)

    def _of(self, name: str) -> tuple[Accelerator, str]:
        if name not in self._found:
            self._found[name] = self._complete(name)
        return self._found[name]

    def _complete(self, name: str) -> tuple[Accelerator, str]:
        try:
            chip, note = self._catalogue.find(name), ""
        except DataError:
            chip, note = self._near(name)
        blanks = [figure for figure in _NEEDED if getattr(chip, figure) is None]
        if not blanks:
            return _with_links(chip), note
        figures = {figure: self._usual(chip, figure) for figure in blanks}
        told = ", ".join(f"{figure} ({value:,.0f} put in)" for figure, value in figures.items())
        note = "; ".join(filter(None, (note, f"the catalogue has no {told} for {chip.name}")))
        return _with_links(msgspec.structs.replace(chip, **figures)), note

    def _near(self, name: str) -> tuple[Accelerator, str]:
        """The entry whose name is part of the one asked for, the longest; or what LIKE is."""
        asked, best, length = key(name), "", 0
        for id_, entry in self._catalogue.entries.items():
            for alias in (id_, *entry.aliases):
                if length < len(key(alias)) and len(key(alias)) >= 2 and key(alias) in asked:
                    best, length = id_, len(key(alias))
        if not best:
            best = self._kin(asked)
        if best:
            chip = self._catalogue.entries[best]
            return chip, f"accelerator {name!r} taken to be {chip.name}"
        chip = self._catalogue.find(LIKE)
        hint = "add it in your own accelerators TOML"
        return chip, f"no accelerator {name!r} in the catalogue: computed as {chip.name}; {hint}"

    def _kin(self, asked: str) -> str:
        """The entry of the kind a word of the name tells; "" where none does."""
        return next((id_ for word, id_ in _KIN if word in asked and id_ in self._catalogue.entries), "")

    def _usual(self, chip: Accelerator, figure: str) -> float:
        wider = {"bf16_tflops": ((chip.fp8_tflops, 2.0), (chip.fp4_tflops, 4.0))}
        for known, times in wider.get(figure, ()):
            if known is not None:
                return known / times
        whole = [e for e in self._catalogue.entries.values() if all(getattr(e, f) is not None for f in _NEEDED)]
        base = next((f for f in ("memory_gb_per_s", "bf16_tflops", "memory_gb") if _known(chip, f)), None)
        if base is None:
            return _median(whole, figure)
        return float(getattr(chip, base) * median(getattr(e, figure) / getattr(e, base) for e in whole))


def _with_links(chip: Accelerator) -> Accelerator:
    """With the least of links where the sheet names none: who deploys over several joins them somehow."""
    if chip.scale_up_gb_per_s or chip.scale_out_gbit_per_s:
        return chip
    return msgspec.structs.replace(chip, scale_up_gb_per_s=_LEAST_LINK_GB_PER_S)


def _known(chip: Accelerator, figure: str) -> bool:
    return getattr(chip, figure) is not None


def _median(entries: Sequence[Accelerator], figure: str) -> float:
    return float(median(getattr(entry, figure) for entry in entries))
