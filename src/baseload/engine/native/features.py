"""Which instruction sets the native kernels may use here, and which one a setting chooses."""

from dataclasses import dataclass

from baseload.domain.errors import SettingsError

SETTINGS = ("auto", "xla", "avx2", "avx512vnni", "avx512", "amx")
XLA = "xla"  # no native kernels


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """What processor and operating system offer. `avx512vnni` means F, BW, VL, DQ and VNNI together, `avx512`
    BF16 besides.

    `amx`: the tile kernels passed their check against plain C++ in this process; `has_amx`: the processor has tiles,
    and this process may use them; `amx_refused`: it has them, but the operating system does not permit them.
    """

    avx2: bool = False
    avxvnni: bool = False
    avx512: bool = False
    amx: bool = False
    has_amx: bool = False
    avx512vnni: bool = False
    amx_refused: bool = False

    @classmethod
    def of_bits(cls, bits: int) -> "CpuFeatures":
        """Of the bit field the library answers (native/common/exports.cc)."""
        return cls(*(bool(bits >> index & 1) for index in range(7)))

    @property
    def isas(self) -> tuple[str, ...]:
        """Usable instruction sets, the best first."""
        has = {
            "amx": self.amx,
            "avx512": self.avx512,
            "avx512vnni": self.avx512vnni,
            "avxvnni": self.avxvnni,
            "avx2": self.avx2,
        }
        return tuple(name for name, present in has.items() if present)


def choose(setting: str, features: CpuFeatures) -> str:
    """The instruction set for `EngineSpec.kernels`, or "xla". Raises SettingsError where it is not to be had."""
    if setting not in SETTINGS:
        raise SettingsError(f"engine.kernels is {setting!r}: choose one of {', '.join(SETTINGS)}")
    if setting == "auto":
        return features.isas[0] if features.isas else XLA
    if setting != XLA and setting not in features.isas:
        usable = ", ".join((*features.isas, XLA))
        raise SettingsError(f"engine.kernels is {setting!r}, which this processor does not offer: it has {usable}")
    return setting
