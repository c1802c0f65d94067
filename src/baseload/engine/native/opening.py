"""Whether a directory is run on the native kernels, and the runner that does it.

Packed directories always come here (without the kernels, their calls are lowered to plain JAX: slow, but right). Of
other directories those that are to be computed in bfloat16, where there are kernels; they are packed once into the
cache folder and mapped from then on. float32 stays with XLA.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import jax

from baseload.domain.model import EngineSpec
from baseload.engine.native import library
from baseload.engine.native.features import XLA
from baseload.engine.native.packing import LAYOUT
from baseload.engine.native.runner import NativeRunner
from baseload.engine.native.weights_map import FORMAT
from baseload.engine.packed import PackedModel, is_packed, open_packed, partial_of, place, write_packed
from baseload.engine.registry import read_config
from baseload.engine.weights import resolve_dtype

MAX_PACKED = 8  # models packed by us that are kept beside the programs; of more, the longest unused go


def open_native(model_dir: Path, *, spec: EngineSpec, cache_dir: Path | None) -> NativeRunner | None:
    """The native runner of this directory; None where XLA is to run it.

    Raises SettingsError where the processor lacks what `kernels` asks for, ModelError or BadWeights.
    """
    isa = library.isa_for(spec.kernels) if jax.default_backend() == "cpu" else XLA  # the kernels are the CPU's
    if is_packed(model_dir):
        model = open_packed(model_dir)
    elif isa != XLA and resolve_dtype(read_config(model_dir), spec.dtype) == "bfloat16":
        model = open_plain(model_dir, cache_dir)
    else:
        return None
    found = library.load()
    if found is not None:
        found.set_threads(spec.threads)
    return NativeRunner(
        model.config,
        model.weights,
        spec=spec,
        isa=isa,
        hadamard=model.down_hadamard,
        cache_dir=None if cache_dir is None else cache_dir / "programs",
    )


def open_plain(model_dir: Path, cache_dir: Path | None) -> PackedModel:
    """A Hugging Face directory packed in bfloat16: from the cache folder, where it is put if it is not there yet.

    Without a cache folder it is packed into a temporary one, which is removed at once: its mapping stays.
    """
    if cache_dir is None:
        with tempfile.TemporaryDirectory(prefix="baseload-") as passing:
            return _pack(model_dir, Path(passing) / "packed")
    folder = cache_dir / "packed"
    out = folder / _identity(model_dir)
    if is_packed(out):
        (out / "config.json").touch()  # recently used: the last to be dropped
        return open_packed(out)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    model = _pack(model_dir, out)
    _drop_oldest(folder, out)
    return model


def _pack(model_dir: Path, out: Path) -> PackedModel:
    # Here, and not above: waking a packed model must not wait for these.
    from baseload.engine.quantize.pack import plain_tensors  # noqa: PLC0415
    from baseload.engine.quantize.source import open_source  # noqa: PLC0415

    source = open_source(model_dir)
    raw = json.loads((model_dir / "config.json").read_bytes())
    generation = model_dir / "generation_config.json"
    partial = partial_of(out)
    try:
        write_packed(
            partial,
            raw,
            plain_tensors(source),
            scheme="bf16",
            group=0,
            down_hadamard=0,
            files=[generation] if generation.exists() else [],
        )
        place(partial, out, replace=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_packed(out)


def _identity(model_dir: Path) -> str:
    """Of what the packed bytes were made from: the files, their sizes and times, and our formats."""
    named = sorted([*model_dir.glob("*.safetensors"), *model_dir.glob("*.json")])
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in named]
    text = json.dumps([str(model_dir.resolve()), files, FORMAT, LAYOUT])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _drop_oldest(folder: Path, newest: Path) -> None:
    """Keeps the folder within its bound. What another process has mapped stays its own until it ends."""
    made = [path for path in folder.iterdir() if is_packed(path) and path != newest]
    aged = sorted(made, key=lambda path: (path / "config.json").stat().st_mtime_ns)
    for path in aged[: max(0, len(aged) + 1 - MAX_PACKED)]:
        shutil.rmtree(path, ignore_errors=True)
