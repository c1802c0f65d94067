"""`quantize`: a model's folder or GGUF file in, a packed directory with its measured fidelity out."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np

from baseload.domain.errors import ModelError, SettingsError
from baseload.engine import packed
from baseload.engine.config import ModelConfig, read_json
from baseload.engine.gguf.convert import write_folder
from baseload.engine.gguf.read import is_gguf
from baseload.engine.native.weights_map import BLOB, annotate
from baseload.engine.quantize import calibrate
from baseload.engine.quantize.calibrate import Calibration
from baseload.engine.quantize.layerwise import Fit, quantize_layers
from baseload.engine.quantize.measure import Fidelity, measure, relief
from baseload.engine.quantize.pack import packed_tensors, plain_tensors, turned_tensors
from baseload.engine.quantize.schemes import Scheme
from baseload.engine.quantize.source import ModelSource, open_source
from baseload.engine.quantize.transforms import down_block
from baseload.engine.tokenizer import TextTokenizer

TRIAL_PARAMETERS = 200_000_000  # a larger model is turned without trying both, and nothing of it is kept
T = TypeVar("T")
_SPARE = 1 / 16  # of the bytes in 8 bits: with it a weight takes 8.5 bits, as it does in llama.cpp's Q8_0
_RELIEF_ROWS = 96  # of the calibration, or up to twice as many, to see what each matrix costs
_KEPT = 8  # of so many rows of the calibration one is kept back to choose by, and one to measure by


class Show(Protocol):
    """What the caller shows of the work."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage are over."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to do. `calibrate` is a text file; None: the model calibrates itself. `rotate` None: as is better."""

    source: Path
    out: Path
    scheme: Scheme
    calibrate: Path | None = None
    replace: bool = False
    rotate: bool | None = None
    seed: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """What was written, and how faithful it is on text that it was not fitted to."""

    out: str
    scheme: str
    group: int
    weights_bytes: int
    source_bytes: int
    calibration: str
    rotated: bool
    kept: tuple[str, ...]  # matrices that stay in bfloat16
    fidelity: Fidelity


def quantize(request: Request, *, show: Show) -> Outcome:
    """Writes `request.out`, whole or not at all. Raises ModelError, DataError or SettingsError."""
    out = request.out
    _check_place(request)
    if packed.is_packed(request.source):
        raise ModelError(f"{request.source} is quantized already.", hint="Give the model it was made from.")
    source = open_source(request.source)
    workshop = packed.partial_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        workshop.mkdir()
    except OSError as error:
        raise SettingsError(f"{out}: cannot be written: {error.strerror}.", hint="Give another --out.") from None
    try:
        source.check()  # before what takes minutes
        with _folder_of(request.source, workshop) as folder:
            tokens, said = _calibration(request, source, folder, workshop, show)
            parts = _split(tokens)
            made, fidelity = _best(request, source, folder, workshop, parts, show)
        is_rotated = made.name.startswith(_NAMES[True])
        kept = tuple(read_json(made / "config.json")["quantization_config"].get("kept", ()))
        noted = {"text": f"kept back from {said}", **msgspec.to_builtins(fidelity)}
        annotate(made, {"fidelity": noted, "calibration": said, "rotated": is_rotated})
        packed.place(made, out, replace=request.replace)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        raise SettingsError(
            f"{out}: cannot be written: {error.strerror}.", hint="Make room there, or give another --out."
        ) from None
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    scheme, size = request.scheme, (out / BLOB).stat().st_size
    before = _size_of(request.source)
    return Outcome(str(out), scheme.name, scheme.group, size, before, said, is_rotated, kept, fidelity)


def _check_place(request: Request) -> None:
    """Only what quantize wrote is ever replaced, and never the model itself."""
    source, out = request.source.resolve(), request.out.resolve()
    if out == source or out in source.parents:
        raise SettingsError(f"{request.out} holds the model itself.", hint="Give another --out.")
    if not request.out.exists():
        return
    if not request.replace:
        raise SettingsError(f"{request.out} is there already.", hint="Give another --out, or --force to replace it.")
    if not packed.is_packed(out):
        raise SettingsError(
            f"{request.out} was not written by baseload quantize, so --force does not replace it.",
            hint="Give another --out.",
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """The calibration's rows: to fit, to choose by, to measure by."""

    fit: Calibration
    choose: Calibration
    measure: Calibration


_NAMES = {False: "straight", True: "turned"}


def _best(
    request: Request, source: ModelSource, folder: Path, workshop: Path, parts: _Parts, show: Show
) -> tuple[Path, Fidelity]:
    """The packed directory in the workshop that is nearest to float32, and how near it is on rows kept back."""
    scheme, config = request.scheme, source.config
    if not scheme.is_integer:
        made = workshop / _NAMES[False]
        tensors = _counted(plain_tensors(source), config, show, "pack")
        _write(made, folder, tensors, scheme, 0)
        return made, _measured(source, packed.open_packed(made), parts.measure, show)
    is_small = config.parameters <= TRIAL_PARAMETERS
    ways = [request.rotate] if request.rotate is not None else [False, True] if is_small else [True]
    found: list[tuple[float, Path, Fit]] = []

    def attempt(fit: Fit) -> None:
        name = _NAMES[fit.rotate] + (", some kept" if fit.keep else "")
        made = workshop / name
        values = quantize_layers(source, scheme, parts.fit, fit=fit, seed=request.seed)
        tensors = packed_tensors(config, _counted(values, config, show, f"quantize, {name}"))
        _write(made, folder, tensors, scheme, down_block(config) if fit.hadamard else 0, fit.keep)
        kl = _measured(source, packed.open_packed(made), parts.choose, show).kl if is_small else 0.0
        found.append((kl, made, fit))

    for way in ways:
        attempt(Fit(rotate=bool(way)))
    if is_small and scheme.name == "w8a8":
        _, made, fit = min(found, key=lambda each: each[0])
        keep = _worth_keeping(source, packed.open_packed(made), parts.fit, show)
        if keep:
            attempt(replace(fit, keep=keep))
    best = min(found, key=lambda each: each[0])[1]
    return best, _measured(source, packed.open_packed(best, whole=True), parts.measure, show)


def _worth_keeping(source: ModelSource, model: packed.PackedModel, part: Calibration, show: Show) -> tuple[str, ...]:
    """The matrices that should stay in bfloat16: most relief for a byte first, as long as they fit into _SPARE."""
    show("compare", 0, 1)
    some = part.part(np.arange(len(part.tokens)) % (len(part.tokens) // _RELIEF_ROWS + 1) == 0)
    gains = relief(source, model, some.tokens, some.mask)  # of prompts, too: there no few tokens decide
    show("compare", 1, 1)
    sizes = {name: model.weights.matrix(name).bytes for name in gains}
    spare = int(_SPARE * sum(sizes.values()))
    chosen: list[str] = []
    for name in sorted(gains, key=lambda name: -gains[name] / sizes[name]):
        if gains[name] > 0 and sizes[name] <= spare:
            chosen.append(name)
            spare -= sizes[name]
    return tuple(sorted(chosen))


def _counted(
    tensors: Iterator[tuple[str, T]], config: ModelConfig, show: Show, stage: str
) -> Iterator[tuple[str, T]]:
    """The same tensors; each finished one is shown."""
    total = len(packed.expected_shapes(config))
    show(stage, 0, total)
    for done, (name, value) in enumerate(tensors):
        show(stage, done, total)
        yield name, value
    show(stage, total, total)


def _write(
    made: Path,
    folder: Path,
    tensors: Iterator[tuple[str, Any]],
    scheme: Scheme,
    block: int,
    keep: tuple[str, ...] = (),
) -> None:
    files = [folder / name for name in packed.COPIED if (folder / name).is_file()]
    packed.write_packed(
        made,
        read_json(folder / "config.json"),
        tensors,
        scheme=scheme.name,
        group=scheme.group,
        down_hadamard=block,
        kept=keep,
        files=files,
    )


def _calibration(
    request: Request, source: ModelSource, folder: Path, workshop: Path, show: Show
) -> tuple[Calibration, str]:
    tokenizer, config = TextTokenizer.open(folder), source.config
    if request.calibrate is not None:
        return calibrate.from_file(request.calibrate, tokenizer, config), request.calibrate.name

    def wrote(done: int, total: int) -> None:
        show("generate", done, total)

    if config.parameters <= TRIAL_PARAMETERS:
        return calibrate.from_itself(
            folder, tokenizer, seed=request.seed, progress=wrote
        ), "what the model says itself"
    # A large one writes in 8 bits, several times as fast, from each opening once: fitting takes its time by words.
    writer, eight = workshop / "writer", Scheme.parse("w8a8")
    tensors = _counted(turned_tensors(source, request.seed), config, show, "prepare")
    _write(writer, folder, tensors, eight, down_block(config))
    try:
        tokens = calibrate.from_itself(writer, tokenizer, seed=request.seed, progress=wrote)
    finally:
        shutil.rmtree(writer, ignore_errors=True)
    return tokens, "what the model says itself"


def _split(whole: Calibration) -> _Parts:
    """Of a text of few rows, all are used for all."""
    place = np.arange(len(whole.tokens)) % _KEPT
    if len(place) < _KEPT:
        return _Parts(whole, whole, whole)
    return _Parts(whole.part((place != 3) & (place != 7)), whole.part(place == 3), whole.part(place == 7))


def _measured(source: ModelSource, model: packed.PackedModel, part: Calibration, show: Show) -> Fidelity:
    return measure(source, model, part.tokens, part.counts, progress=lambda done, total: show("measure", done, total))


@contextmanager
def _folder_of(source: Path, workshop: Path) -> Iterator[Path]:
    """The model as a Hugging Face folder: itself, or of a GGUF file one that lives as long as this."""
    if not is_gguf(source):
        yield source
        return
    folder = workshop / "unpacked"
    write_folder(source, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size_of(source: Path) -> int:
    """Bytes of the weights."""
    if source.is_file():
        return source.stat().st_size
    return sum(path.stat().st_size for path in sorted(source.glob("*.safetensors")))
