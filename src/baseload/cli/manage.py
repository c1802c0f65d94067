"""`baseload models` and `baseload keys`: what is served, and who may ask."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from baseload.cli.desk import Desk
from baseload.cli.first_start import GUIDE, GUIDE_FOLDER
from baseload.cli.flags import AsJson, SettingsFile, at_place
from baseload.cli.model_check import check_model
from baseload.cli.reach import Place, settings_of, with_desk
from baseload.cli.screen import print_json, print_table, say, when
from baseload.cli.settings import anchored, cache_dir
from baseload.domain.errors import SettingsError
from baseload.domain.model import ModelSpec
from baseload.domain.tenant import KeyLimits, ShownKey
from baseload.domain.work import Tier
from baseload.web.snapshot import span
from baseload.wire.settings import model_from_assignments

models = typer.Typer(no_args_is_help=True, help="What is served: list, add, check, remove, warm.")
keys = typer.Typer(no_args_is_help=True, help="Who may ask: list, create, revoke.")


@models.command("list")
@at_place
def list_models(*, place: Place, as_json: AsJson = False) -> None:
    """The models and how they scale."""

    async def show(desk: Desk) -> None:
        specs = await desk.models()
        if as_json:
            print_json(specs)
        elif not specs:
            say("No model yet. Add one with: baseload models add NAME FOLDER")
        else:
            columns = ("name", "source", "context", "replicas", "sleeps after", "$/h each")
            print_table(columns, [_model_row(spec) for spec in specs], right=("context", "$/h each"))

    with_desk(place, show)


def _model_row(spec: ModelSpec) -> tuple[str, ...]:
    scaling = spec.scaling
    if spec.is_remote:
        return spec.name, spec.source, "", "remote", "never", ""
    return (
        spec.name,
        spec.source,
        f"{spec.context_tokens:,}" if spec.context_tokens else "",
        f"{scaling.min_replicas} to {scaling.max_replicas}",
        "never" if scaling.min_replicas else span(scaling.idle_ns),
        f"{spec.price.usd_per_hour:g}",
    )


@models.command("add")
@at_place
def add_model(
    name: Annotated[str, typer.Argument(help="The name clients will use.")],
    source: Annotated[
        str, typer.Argument(help="A Hugging Face folder, a .gguf file, or the http:// URL of a worker.")
    ],
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="For example --set scaling.min_replicas=1."),
    ] = None,
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Add a model, or change the one of that name. The folder is checked before anything is changed."""
    spec = anchored(model_from_assignments(name, source, assign or [], settings_of(place).defaults), Path())

    async def put(desk: Desk) -> None:
        await desk.put_model(spec)
        if as_json:
            print_json(spec)
        else:
            asleep = "" if spec.is_remote or spec.scaling.min_replicas else " It sleeps until the first request."
            say(f"{name} is added.{asleep} Try it with: baseload chat --model {name}")

    with_desk(place, put)


@models.command("check")
@at_place
def check_files(
    model: Annotated[str, typer.Argument(help="A model's name, or a path that could be added.")],
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Look into a model's files: sizes, shapes and, of a quantized folder, the digest of every byte."""
    source = source_of(model, place)
    checked = asyncio.run(check_model(ModelSpec(name=model, source=str(source)), whole=True))
    if as_json:
        print_json({"source": checked.source, "context_tokens": checked.context_tokens, "ok": True})
    else:
        say(f"{checked.source} is whole: up to {checked.context_tokens:,} tokens of context.")


def source_of(model: str, place: Place) -> Path:
    """The path that is meant: one that exists, else where the model of that name lies. Raises SettingsError."""
    path = Path(model).expanduser()
    if path.exists():
        return path.absolute()
    settings = settings_of(place)
    specs = list(settings.models)
    if Path(settings.data_dir).expanduser().is_dir():
        with_desk(place, lambda desk: _gather(desk, specs))
    found = next((spec for spec in specs if spec.name == model), None)
    if found is None and model == GUIDE:
        return GUIDE_FOLDER
    if found is None:
        names = ", ".join(spec.name for spec in specs) or "none"
        raise SettingsError(
            f"There is no model {model}: neither a path nor a name (known are: {names}).",
            hint="Give a Hugging Face folder, a .gguf file or a model's name.",
        )
    if found.is_remote:
        raise SettingsError(f"The model {model} is served elsewhere.", hint="Do it where its files are.")
    return Path(found.source)


async def _gather(desk: Desk, specs: list[ModelSpec]) -> None:
    specs += await desk.models()


@models.command("remove")
@at_place
def remove_model(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Remove a model: what waits for it is refused, what runs may finish. Its files are not touched."""

    async def remove(desk: Desk) -> None:
        await desk.remove_model(name)
        if as_json:
            print_json({"removed": name})
        else:
            say(f"{name} is removed. Its files stay where they are.")

    with_desk(place, remove)


@models.command("warm")
def warm_model(
    folder: Annotated[Path | None, typer.Argument(help="The model's folder; without it the shipped `guide`.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Engine options, as the model will have."),
    ] = None,
    settings: SettingsFile = "",
    as_json: AsJson = False,
) -> None:
    """Compile a model's programs into the cache now, so that its first wake is as fast as later ones."""
    chosen = settings_of(Place(settings=settings))
    source = (folder or GUIDE_FOLDER).expanduser().absolute()
    spec = model_from_assignments("warm", str(source), assign or [], chosen.defaults)
    cache = cache_dir(chosen)
    # The engine brings JAX: too slow to import for the other commands.
    from baseload.engine.runner import open_runner  # noqa: PLC0415

    began = time.monotonic()
    runner = open_runner(source, spec=spec.engine, cache_dir=cache)
    try:
        runner.warm(background=False)
    finally:
        runner.close()
    took_s = time.monotonic() - began
    if as_json:
        print_json({"folder": str(source), "cache_dir": str(cache), "seconds": took_s})
    else:
        say(f"The programs of {source.name} are in {cache} ({took_s:.1f} s).")


@keys.command("list")
@at_place
def list_keys(*, place: Place, as_json: AsJson = False) -> None:
    """The keys that are not revoked. Secrets are kept nowhere and cannot be shown."""

    async def show(desk: Desk) -> None:
        found = await desk.keys()
        if as_json:
            print_json(found)
        else:
            columns = ("id", "name", "begins", "rights", "class", "models", "limits", "created (UTC)")
            print_table(columns, [_key_row(one) for one in found])

    with_desk(place, show)


def _key_row(key: ShownKey) -> tuple[str, ...]:
    limits = [
        f"{key.limits.requests_per_minute} requests/min" if key.limits.requests_per_minute else "",
        f"{key.limits.tokens_per_minute} tokens/min" if key.limits.tokens_per_minute else "",
        f"{key.limits.max_in_flight} at once" if key.limits.max_in_flight else "",
    ]
    return (
        key.key_id,
        key.name,
        f"{key.prefix}…" if key.prefix else "",
        "admin" if key.is_admin else "requests",
        key.tier.value,
        ", ".join(key.models) or "all",
        ", ".join(filter(None, limits)) or "none",
        when(key.created_ns),
    )


@keys.command("create")
@at_place
def create_key(
    name: Annotated[str, typer.Argument(help="What to call it: a person, a team, a program.")],
    is_admin: Annotated[
        bool, typer.Option("--admin", help="May also manage models and keys, and see usage.")
    ] = False,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only this model; may be repeated.")] = None,
    requests_per_minute: Annotated[
        int, typer.Option("--rpm", min=0, max=10**12, help="Requests a minute; 0: no limit.")
    ] = 0,
    tokens_per_minute: Annotated[
        int, typer.Option("--tpm", min=0, max=10**12, help="Tokens a minute; 0: no limit.")
    ] = 0,
    max_in_flight: Annotated[
        int, typer.Option("--at-once", min=0, max=10**12, help="Requests at once; 0: no limit.")
    ] = 0,
    tier: Annotated[
        Tier, typer.Option("--tier", help="The highest service_tier it may ask for, and has where it asks for none.")
    ] = Tier.DEFAULT,
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Create a key. The secret is shown once, now."""
    if not name.strip():
        raise SettingsError("A key needs a name.", hint="For example: baseload keys create web-shop")

    async def create(desk: Desk) -> None:
        limits = KeyLimits(requests_per_minute, tokens_per_minute, max_in_flight)
        made, secret = await desk.create_key(name, is_admin=is_admin, models=model or [], limits=limits, tier=tier)
        if as_json:
            print_json({**msgspec.to_builtins(made), "secret": secret})
        else:
            say(f"{secret}")
            say(f"Keep it now: it is shown once. Its id is {made.key_id}.", style="dim")

    with_desk(place, create)


@keys.command("revoke")
@at_place
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Revoke a key: from now on it is refused. Requests that run may finish."""

    async def revoke(desk: Desk) -> None:
        await desk.revoke_key(key_id)
        if as_json:
            print_json({"revoked": key_id})
        else:
            say(f"{key_id} is revoked.")

    with_desk(place, revoke)
