"""Whether a directory is run on the native kernels, and the runner that does it."""

from pathlib import Path

from baseload.domain.model import EngineSpec
from baseload.engine.spans import ModelRunner


def open_native(model_dir: Path, *, spec: EngineSpec, cache_dir: Path | None) -> ModelRunner | None:
    """The native runner of this directory; None where XLA is to run it."""
    return None
