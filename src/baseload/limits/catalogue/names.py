"""Which accelerator stands in a sentence such as "NVIDIA Blackwell GPU (B200-SXM-180GB)", and how many of which.

Names are compared by whole words (letters and digits), so that "L40S" is not an L40 and "GB200" not a B200, but
however they are parted: "Gaudi 3" is "gaudi3". Of several that occur, the one with most words wins, then the longest.
A list such as "MI300X (x32), MI325X (x16)" is a mix.
"""

import re
from functools import lru_cache

from baseload.limits.catalogue.accelerators import Catalogue

_WORD = re.compile(r"[a-z0-9]+")
_MARKS = re.compile(r"\((?:r|tm|c)\)|[®™©]")  # which part no words
_TIMES = re.compile(r"\(x\s*(\d+)\)")


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """Letters and digits of a text, in lower case."""
    return tuple(_WORD.findall(_MARKS.sub(" ", text.lower())))


def recognise(text: str, catalogue: Catalogue) -> str | None:
    """The identifier of the accelerator a text speaks of, or None."""
    said = words(text)
    whole = "".join(said)
    best: tuple[int, int, str] | None = None
    for id_, entry in catalogue.entries.items():
        for name in (id_, entry.name, *entry.aliases):
            sought = words(name)
            if sought and "".join(sought) in whole and _within(sought, said):
                rank = (len(sought), sum(map(len, sought)), id_)
                if best is None or rank[:2] > best[:2]:
                    best = rank
    return None if best is None else best[2]


def mixture(text: str, catalogue: Catalogue, *, total: int) -> tuple[tuple[str | None, int], ...]:
    """(identifier or None, count) of each part of a list; one part where nothing is listed."""
    parts = [part for part in text.split(",") if _TIMES.search(part)]
    if len(parts) < 2:
        return ((recognise(text, catalogue), total),)
    counts = [_TIMES.search(part) for part in parts]
    return tuple(
        (recognise(part, catalogue), int(found[1])) for part, found in zip(parts, counts, strict=True) if found
    )


def _within(sought: tuple[str, ...], said: tuple[str, ...]) -> bool:
    whole = "".join(sought)
    for first in range(len(said)):
        joined = ""
        for word in said[first:]:
            joined += word
            if len(joined) >= len(whole):
                break
        if joined == whole:
            return True
    return False
