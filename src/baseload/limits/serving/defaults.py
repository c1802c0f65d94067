"""The values shipped: global parameters, shared corrections and kernels, fitted once, with what they rest on.

They live in catalogue/serving.toml and are written by `bench/limits/fit_defaults.py`, never by hand.
"""

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files

import msgspec
import numpy as np
from msgspec import Struct

from baseload.limits.serving.fit import PRIORS, Fitted
from baseload.limits.serving.residual import Kernel
from baseload.limits.serving.step import PARAMETERS


class Defaults(Struct, frozen=True, forbid_unknown_fields=True):
    """What prediction starts from. Corrections are logarithms, by parameter, by trait."""

    basis: str
    parameters: dict[str, float]
    corrections: dict[str, dict[str, float]]
    tpot: Kernel
    ttft: Kernel

    def fitted(self) -> Fitted:
        """As the fit takes it. A parameter not listed has its prior."""
        values = np.log([self.parameters.get(name, PRIORS[name]) for name in PARAMETERS])
        pairs = {(trait, name): v for trait, of in self.corrections.items() for name, v in of.items()}
        return Fitted(values, pairs)


def read_defaults(data: bytes | None = None) -> Defaults:
    """The values shipped with the package, or those in `data`."""
    raw = data if data is not None else (files("baseload.limits.catalogue") / "serving.toml").read_bytes()
    return msgspec.convert(tomllib.loads(raw.decode()), Defaults, strict=False)


def to_toml(fitted: Fitted, *, basis: str, tpot: Kernel, ttft: Kernel) -> str:
    """The file `read_defaults` reads."""
    lines = [
        "# Written by bench/limits/fit_defaults.py; see docs/limits.md. Corrections are natural logarithms.",
        f"basis = {_quoted(basis)}",
        "",
        "[parameters]",
        *(f"{name} = {np.exp(v):.5g}" for name, v in zip(PARAMETERS, fitted.globals_, strict=True)),
        "",
    ]
    by_trait: dict[str, dict[str, float]] = {}
    for (trait, name), value in fitted.corrections.items():
        if abs(value) >= 0.002:
            by_trait.setdefault(trait, {})[name] = value
    for trait, of in sorted(by_trait.items()):
        lines += [f"[corrections.{_quoted(trait)}]", *_numbers(of), ""]
    for name, kernel in (("tpot", tpot), ("ttft", ttft)):
        lines += [f"[{name}]"]
        for part in ("constant", "smooth", "scales"):
            lines.append(f"{part} = [{', '.join(f'{v:.4g}' for v in _values(getattr(kernel, part)))}]")
        lines += [f"noise = {kernel.noise:.4g}", f"disagg_noise = {kernel.disagg_noise:.4g}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _values(values: Sequence[float]) -> Sequence[float]:
    return values


def _numbers(of: Mapping[str, float]) -> list[str]:
    return [f"{name} = {value:.4f}" for name, value in sorted(of.items())]


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
