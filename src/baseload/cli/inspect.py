"""`baseload status`, `usage` and `events`: what is, what was spent, what happened and why."""

import asyncio
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from baseload.cli.desk import Desk
from baseload.cli.flags import AsJson, at_place
from baseload.cli.reach import Place, with_desk
from baseload.cli.screen import dollars, joules, out, print_json, print_table, say, seconds, when
from baseload.cli.words import sentence
from baseload.core.ports import JournalRow, UsageRow
from baseload.domain.errors import SettingsError
from baseload.domain.status import ControlStatus
from baseload.domain.units import NUSD_PER_USD, UJ_PER_J
from baseload.domain.work import joint_basis
from baseload.web.snapshot import headline, model_says, span, usd_per_hour

FOLLOW_EVERY_S = 1.0
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
WIDE = 130  # columns of a terminal in which all figures of usage stand beside each other
FIGURES = ["requests", "tokens in", "cached", "out"]
FIGURES += ["useful s", "idle s", "cold s", "cost", "joules", "$/M tokens", "tokens/J"]


class By(StrEnum):
    """What usage is summed by."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"
    CLASS = "class"


@at_place
def status(*, place: Place, as_json: AsJson = False) -> None:
    """Models, replicas, queue, and what went wrong last."""

    async def show(desk: Desk) -> None:
        found = await desk.status()
        specs = {spec.name: spec for spec in await desk.models()}
        if as_json:
            print_json({"running": desk.is_running, **msgspec.to_builtins(found)})
            return
        if not desk.is_running:
            say("Baseload is not running here; this is the state it was left in. Start it with: baseload up")
        else:
            say(headline(found, usd_per_hour(found, specs)))
        if found.models:
            _print_models(found)
        for model in found.models if desk.is_running else ():
            says = model_says(model, specs.get(model.name), now_ns=found.now_ns)
            say(f"{model.name}: {says[:1].lower()}{says[1:]}")
        if desk.is_running and found.replicas:
            _print_replicas(found)
        for spare in found.spares if desk.is_running else ():
            state = "is ready to become any model" if spare.is_warm else "is being made ready"
            say(f"spare process {spare.pid} {state} ({spare.memory_bytes >> 20} MiB)")
        for model in found.models:
            if model.last_error:
                say(f"{model.name}, last error: {model.last_error}", style="red")

    with_desk(place, show)


def _print_models(found: ControlStatus) -> None:
    rows = [
        (
            model.name,
            model.state,
            f"{model.ready}/{model.desired}",
            str(model.in_flight),
            str(model.queued),
            f"{model.requests_total:,}",
            f"{model.prompt_tokens_total:,} / {model.completion_tokens_total:,}",
        )
        for model in found.models
    ]
    columns = ("model", "state", "ready", "running", "waiting", "requests", "tokens in / out")
    print_table(columns, rows, right=columns[2:])


def _print_replicas(found: ControlStatus) -> None:
    rows = [
        (
            replica.replica_id,
            replica.model,
            f"{replica.state} {span(max(0, found.now_ns - replica.since_ns))}",
            str(replica.in_flight),
            f"{replica.sample.kv_usage:.0%}",
            seconds(replica.useful_ns),
            seconds(replica.idle_ns),
            seconds(replica.cold_ns),
            f"{replica.power_w:.1f} {replica.energy_basis}",
            str(replica.pid or ""),
        )
        for replica in found.replicas
    ]
    columns = ("replica", "model", "state", "running", "KV", "useful s", "idle s", "cold s", "watts", "pid")
    print_table(columns, rows, right=columns[3:8])


@at_place
def usage(
    by: Annotated[
        list[By] | None, typer.Option("--by", help="Sum by key, model, day or class; may be repeated.")
    ] = None,
    from_day: Annotated[str, typer.Option("--from", metavar="YYYY-MM-DD", help="First day, UTC.")] = "",
    to_day: Annotated[str, typer.Option("--to", metavar="YYYY-MM-DD", help="Last day, UTC.")] = "",
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """What was asked and what it cost: by key, class, model and day; idle and cold time stands in rows of its own."""
    for flag, day in (("--from", from_day), ("--to", to_day)):
        if day and not DAY.fullmatch(day):
            raise SettingsError(f"{flag} {day}: not a day.", hint="Write it like 2026-11-20.")

    async def show(desk: Desk) -> None:
        rows = summed(await desk.usage(from_day=from_day, to_day=to_day), by or list(By))
        total = fold(rows) if rows else None
        if as_json:
            print_json({"rows": [with_ratios(row) for row in rows], "total": with_ratios(total) if total else None})
        elif total is None:
            say("Nothing was used yet. Send a request, for example: baseload chat")
        else:
            _print_usage(rows, total, by or list(By))

    with_desk(place, show)


def summed(rows: Sequence[UsageRow], by: Sequence[By]) -> list[UsageRow]:
    """Rows folded to the wanted columns, in order of day, model, key, class of service."""
    groups: dict[tuple[str, ...], list[UsageRow]] = {}
    for row in rows:
        label = (
            row.day if By.DAY in by else "",
            row.model if By.MODEL in by else "",
            row.key_id if By.KEY in by else "",
            row.tier if By.CLASS in by else "",
        )
        groups.setdefault(label, []).append(row)
    folded = []
    for (day, model, key_id, tier), members in sorted(groups.items(), key=lambda item: item[0]):
        name = members[0].key_name if key_id else ""
        total = fold(members)
        folded.append(msgspec.structs.replace(total, day=day, model=model, key_id=key_id, key_name=name, tier=tier))
    return folded


def fold(rows: Sequence[UsageRow]) -> UsageRow:
    """The sum of rows; the energy's basis is "mixed" where they differ."""
    sums = {
        field: sum(getattr(row, field) for row in rows)
        for field in UsageRow.__struct_fields__
        if isinstance(getattr(rows[0], field), int)
    }
    basis = joint_basis(row.energy_basis for row in rows if row.energy_uj)
    return UsageRow(day="", key_id="", key_name="", model="", energy_basis=basis, **sums)


def with_ratios(row: UsageRow) -> dict[str, object]:
    """A row as JSON fields, with what a token cost."""
    tokens = row.prompt_tokens + row.completion_tokens
    usd, energy_j = row.cost_nusd / NUSD_PER_USD, row.energy_uj / UJ_PER_J
    return {
        **msgspec.to_builtins(row),
        "usd": usd,
        "joules": energy_j,
        "usd_per_million_tokens": usd / tokens * 1e6 if tokens else None,
        "tokens_per_joule": tokens / energy_j if tokens and energy_j else None,
    }


def _print_usage(rows: Sequence[UsageRow], total: UsageRow, by: Sequence[By]) -> None:
    labels: list[tuple[str, Callable[[UsageRow], str]]] = []
    if By.DAY in by:
        labels.append(("day", lambda row: row.day))
    if By.MODEL in by:
        labels.append(("model", lambda row: row.model))
    if By.KEY in by:
        labels.append(("key", lambda row: row.key_name or row.key_id or "(idle and cold)"))
    if By.CLASS in by:
        labels.append(("class", lambda row: row.tier))
    names = [name for name, _ in labels]
    groups = [FIGURES] if out().width >= WIDE else [FIGURES[:4], FIGURES[4:7], FIGURES[7:]]
    for group in groups:
        first, last = FIGURES.index(group[0]), FIGURES.index(group[-1]) + 1
        body = [[label(row) for _, label in labels] + _figures(row)[first:last] for row in rows]
        footer = ["total", *[""] * (len(labels) - 1), *_figures(total)[first:last]]
        print_table([*names, *group], body, right=group, footer=footer)
    if total.energy_basis:
        words = {"modelled": "Energy is modelled: no meter could be read.", "mixed": "Energy is partly modelled."}
        say(words.get(total.energy_basis, f"Energy was measured ({total.energy_basis})."), style="dim")


def _figures(row: UsageRow) -> list[str]:
    ratios = with_ratios(row)
    per_million, per_joule = ratios["usd_per_million_tokens"], ratios["tokens_per_joule"]
    requests = f"{row.requests:,}" + (f" ({row.failed} failed)" if row.failed else "")
    return [
        requests,
        f"{row.prompt_tokens:,}",
        f"{row.cached_tokens:,}",
        f"{row.completion_tokens:,}",
        seconds(row.useful_ns),
        seconds(row.idle_ns),
        seconds(row.cold_ns),
        dollars(row.cost_nusd),
        joules(row.energy_uj),
        "" if per_million is None else f"{per_million:,.2f}",
        "" if per_joule is None else f"{per_joule:,.2f}",
    ]


@at_place
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as things happen; end with Ctrl-C.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All records, not only decisions.")] = False,
    kind: Annotated[str, typer.Option("--kind", help="Only this kind, for example request or worker_exited.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only this model.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many of the newest.")] = 50,
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """What was decided and why. With --json one record a line, so that it can be followed by a program."""
    wanted = kind or ("" if everything else "decision")

    async def show(desk: Desk) -> None:
        rows = list(await desk.events(limit=limit, kind=wanted, model=model))
        if not rows and not follow and not as_json:
            say("Nothing has happened yet.")
        last = _print_events(rows, 0, as_json=as_json)
        while follow and desk.is_running:
            await asyncio.sleep(FOLLOW_EVERY_S)
            rows = list(await desk.events(after_seq=last, limit=10_000, kind=wanted, model=model))
            last = _print_events(rows, last, as_json=as_json)

    with_desk(place, show)


def _print_events(rows: Sequence[JournalRow], last: int, *, as_json: bool) -> int:
    for row in rows:
        if as_json:
            typer.echo(msgspec.json.encode(row))
        else:
            model = row.body.get("model") if row.kind == "decision" else ""
            say(f"{when(row.at_ns)}  {f'{model}: ' if model else ''}{sentence(row)}")
        last = max(last, row.seq)
    return last
