"""`baseload quantize`: a model in fewer bits, and how faithful it is."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from baseload.cli.flags import AsJson, DataDir, SettingsFile
from baseload.cli.manage import source_of
from baseload.cli.reach import Place
from baseload.cli.screen import err, print_json, print_table, say
from baseload.domain.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from baseload.engine.quantize.run import Outcome, Show

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)


def quantize(
    model: Annotated[str, typer.Argument(help="A model's name, its Hugging Face folder, or a .gguf file.")],
    scheme: Annotated[
        str, typer.Option("--scheme", help="w8a8 (8-bit), w4a8 (4-bit weights) or bf16 (packed, not rounded).")
    ],
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="A text like what the model will see. Without: the model's own words."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to write. Default: beside the model, with the scheme's name."),
    ] = None,
    group: Annotated[int, typer.Option("--group", help="w4a8: columns that share a step: 32, 64 or 128.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what the model says, and of rotations.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out names.")] = False,
    data_dir: DataDir = "",
    settings_file: SettingsFile = "",
    as_json: AsJson = False,
) -> None:
    """Write a servable folder in fewer bits, and say how far its answers are from the original's."""
    # JAX takes a second to import; no other command should wait for it.
    from baseload.engine.quantize.run import Request  # noqa: PLC0415
    from baseload.engine.quantize.run import quantize as run  # noqa: PLC0415
    from baseload.engine.quantize.schemes import Scheme  # noqa: PLC0415

    chosen = Scheme.parse(scheme, group)
    source = source_of(model, Place(data_dir, settings_file, "", ""))
    target = (out or _beside(model, source, scheme)).expanduser().absolute()
    _keep_freed_memory()
    request = Request(source, target, chosen, calibrate=calibrate, replace=force, seed=seed)
    try:
        with _bar(silent=as_json) as show:
            outcome = run(request, show=show)
    except ModelError as error:  # the model is what was given: a wrong input
        raise SettingsError(error.message, hint=error.hint) from error
    if as_json:
        fields = msgspec.to_builtins(outcome)
        fields["fidelity"]["perplexity_ratio"] = outcome.fidelity.ratio
        print_json(fields)
    else:
        _print(outcome)


def _beside(model: str, source: Path, scheme: str) -> Path:
    """Beside the model where it was given as a path, else in the working folder."""
    named = source.stem if source.is_file() else source.name
    folder = source.parent if Path(model).expanduser().exists() else Path()
    return folder / f"{named}-{scheme}"


@contextmanager
def _bar(*, silent: bool) -> "Iterator[Show]":
    screen = err()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("left:"),
        TimeRemainingColumn(), TextColumn("so far:"), TimeElapsedColumn(),
        console=screen, disable=silent or not screen.is_terminal, transient=True,
    )  # fmt: skip
    with bar:
        stages: dict[str, TaskID] = {"read": bar.add_task("read", total=None)}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in stages:  # those before it stay in sight
                last = list(stages.values())[-1]
                bar.update(last, total=1, completed=1)
                stages[stage] = bar.add_task(stage, total=total)
            bar.update(stages[stage], completed=done, total=total)

        yield show


def _keep_freed_memory() -> None:
    """Asks glibc to keep what is freed: arrays of many megabytes come and go, and fresh pages cost more than sums."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20), (_MMAP_MAX, 0)):
            libc.mallopt(option, value)


def _print(outcome: "Outcome") -> None:
    fidelity = outcome.fidelity
    share = outcome.weights_bytes / max(outcome.source_bytes, 1)
    group = f", groups of {outcome.group}" if outcome.group else ""
    say(
        f"Wrote {outcome.out}: {outcome.scheme}{group}, {outcome.weights_bytes:,} bytes, {share:.0%} of the original."
    )
    if outcome.kept:
        say(f"Kept in bfloat16, because their rounding costs most: {', '.join(outcome.kept)}.")
    rows = [
        ("perplexity, float32", f"{fidelity.perplexity_float32:,.4f}"),
        ("perplexity, quantized", f"{fidelity.perplexity:,.4f}  ({fidelity.ratio - 1:+.3%})"),
        ("KL divergence, nats a token", f"{fidelity.kl:.3e}"),
        ("same likeliest token", f"{fidelity.agreement:.2%}"),
    ]
    print_table((f"on {fidelity.tokens:,} tokens kept back", ""), rows, right=("",))
    say(f"Calibrated on {outcome.calibration}. Serve it with: baseload models add NAME {outcome.out}")
