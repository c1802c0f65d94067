"""Whether a model's folder can be served, and what it says of itself; asked of the engine in a process of its own.

The engine brings JAX, which the control process must not carry: it would cost a second and 200 MB for one look at a
small file.
"""

import asyncio
import sys
from pathlib import Path

import msgspec

from baseload.domain.errors import ModelError
from baseload.domain.model import ModelSpec

TIMEOUT_S = 120.0


class Verdict(msgspec.Struct, frozen=True):
    """What a look into the folder showed: an error with a hint, or the context length."""

    context_tokens: int = 0
    error: str = ""
    hint: str = ""


async def check_model(spec: ModelSpec, *, whole: bool = False) -> ModelSpec:
    """The spec with its context length filled in; raises ModelError where the folder cannot be served.

    `whole`: a quantized folder's weights are read to the last byte and compared with their digest.
    """
    if spec.is_remote:
        return spec
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "baseload.cli.model_check", spec.source, *(["--whole"] if whole else []),
        *(["--draft", spec.engine.draft] if spec.engine.draft else []),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(None if whole else TIMEOUT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise ModelError(f"{spec.source} was not read within {TIMEOUT_S:.0f} s.", hint="Check the disk.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise ModelError(f"{spec.source} could not be checked: {last}", hint="Try `baseload doctor`.")
    verdict = msgspec.json.decode(output, type=Verdict)
    if verdict.error:
        raise ModelError(verdict.error, hint=verdict.hint)
    context = verdict.context_tokens
    if spec.engine.max_context:
        context = min(context, spec.engine.max_context)
    return msgspec.structs.replace(spec, context_tokens=context)


def look(folder: Path, *, whole: bool = False, draft: Path | None = None) -> Verdict:
    """Look into a Hugging Face folder, a quantized one or a GGUF file; and into that of its draft model."""
    try:
        context = _context_of(folder, whole)
        if draft is not None:
            _check_draft(draft, folder)
    except ModelError as error:
        return Verdict(error=error.message, hint=error.hint)
    return Verdict(context_tokens=context)


def _check_draft(draft: Path, folder: Path) -> None:
    # Imported only in the process that was started for this look.
    from baseload.worker.guesses import check_tokens, unfit  # noqa: PLC0415

    try:
        _context_of(draft, False)
    except ModelError as error:
        raise unfit(error) from error
    if draft.is_dir() and folder.is_dir():  # of a GGUF file the worker sees the tokens once it is unpacked
        check_tokens(draft, folder)


def _context_of(folder: Path, whole: bool) -> int:
    # Imported only in the process that was started for this look.
    from baseload.engine.gguf.convert import check_file  # noqa: PLC0415
    from baseload.engine.gguf.read import is_gguf  # noqa: PLC0415
    from baseload.engine.packed import is_packed, open_packed  # noqa: PLC0415
    from baseload.engine.registry import read_config  # noqa: PLC0415
    from baseload.engine.weights import check_weights  # noqa: PLC0415

    if is_gguf(folder):
        return check_file(folder)
    if not folder.is_dir():
        raise ModelError(
            f"{folder} is neither a folder nor a GGUF file.",
            hint="Give the folder of a Hugging Face model (with config.json), a .gguf file, or an http:// URL.",
        )
    if is_packed(folder):
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{folder} holds no tokenizer.json.", hint="Make it again with `baseload quantize`.")
        return open_packed(folder, whole=whole).config.max_context
    config = read_config(folder)
    for pattern in ("*.safetensors", "tokenizer.json"):
        if not any(folder.glob(pattern)):
            raise ModelError(f"{folder} holds no {pattern}.", hint="Download the model again.")
    check_weights(folder, config)
    return config.max_context


def _main(source: str, *flags: str) -> None:
    draft = Path(flags[flags.index("--draft") + 1]) if "--draft" in flags else None
    sys.stdout.buffer.write(msgspec.json.encode(look(Path(source), whole="--whole" in flags, draft=draft)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
