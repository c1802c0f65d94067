"""`baseload train`: make a model."""

import math
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from baseload.cli.flags import AsJson
from baseload.cli.screen import INTERRUPTED, print_json, say


def train(
    config: Annotated[Path, typer.Option("--config", help="What to train: a TOML file.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, forgetting earlier checkpoints.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model; goes on from its newest checkpoint. Ctrl-C ends it with a checkpoint."""
    # JAX takes a second to import; no other command should wait for it.
    from baseload.train.config import load  # noqa: PLC0415
    from baseload.train.run import train as run  # noqa: PLC0415

    result = run(load(config), progress=not as_json, fresh=fresh)
    if as_json:
        fields = msgspec.to_builtins(result)
        print_json({name: None if _is_nan(value) else value for name, value in fields.items()})
    elif not result.stopped:
        minutes = result.seconds / 60
        say(f"Step {result.step}, loss {result.loss:.4f}, {result.tokens_per_s:,.0f} tokens/s, {minutes:.1f} min.")
        say(f"Serve it with: baseload models add NAME {result.output_dir}")
    if result.stopped:
        raise typer.Exit(INTERRUPTED)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
