"""`baseload plan`: which accelerators, layouts, batches and sites for stated models, traffic, levels and limits."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from baseload.cli.flags import AsJson
from baseload.cli.plan_words import BEGIN_A_PLAN
from baseload.cli.screen import check_writable, err, print_json, say, write_file
from baseload.domain.errors import DataError, ModelError, SettingsError

if TYPE_CHECKING:
    from baseload.limits.catalogue.models import Models
    from baseload.limits.shapes import ModelShape
    from baseload.policy.plan.answer import PlanReport

INFEASIBLE = 3


def plan(
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC.toml", help="What to plan for (docs/plan.md; --example prints one)."),
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", help="usd_per_mtok, tokens_per_joule or latency. Default: the file's.")
    ] = "",
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Leave out the twin runs that check the answer.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Tell of each accelerator that was left out.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a specification to begin with.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with plots (HTML) here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan: ranked answers, what binds them, what would relax it, and a twin run beside each formula."""
    if example:
        print(example_text(), end="")
        return
    if spec is None:
        raise SettingsError("`baseload plan` needs a specification: a TOML file.", hint=BEGIN_A_PLAN)
    check_writable(report)
    began = time.perf_counter()
    with err().status("reading", spinner="dots") as status, as_usage():
        result = answer(spec, objective=objective, check=not no_check, progress=status.update)
    result = msgspec.structs.replace(result, seconds=round(time.perf_counter() - began, 3))
    if report is not None:
        # Pages are drawn only where one is asked for.
        from baseload.cli.plan_page import page  # noqa: PLC0415

        write_file(report, page(result).encode())
    if as_json:
        print_json(result)
    else:
        from baseload.cli.plan_screen import show  # noqa: PLC0415  # as above

        show(result, every=every)
        if report is not None:
            say(f"The page is {report}.", style="dim")
    if not result.feasible:
        raise typer.Exit(INFEASIBLE)


def example_text() -> str:
    """A specification to begin with."""
    return (resources.files("baseload.policy.plan") / "example.toml").read_text()


@contextmanager
def as_usage() -> Iterator[None]:
    """What is wrong with the files given is the user's to mend: exit code 2."""
    try:
        yield
    except (DataError, ModelError) as error:
        raise SettingsError(error.message, hint=error.hint) from None


def answer(
    path: Path, *, objective: str = "", check: bool = True, progress: Callable[[str], None] = lambda _: None
) -> "PlanReport":
    """The report for a specification in a file."""
    # SciPy, NumPy and the twin take a second to import; no other command should wait for them.
    from baseload.cli.plan_question import read_question  # noqa: PLC0415
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415
    from baseload.policy.plan.search import search  # noqa: PLC0415
    from baseload.policy.plan.surroundings import leaving  # noqa: PLC0415
    from baseload.policy.plan.training import ways  # noqa: PLC0415
    from baseload.twin.plan_verify import confirming  # noqa: PLC0415

    question = read_question(path, objective=objective)
    spec, book = question.spec, question.book
    predictor = Predictor(catalogue=book.accelerators, models=Models(question.configs))
    asked = [(m.name, m.model) for m in spec.models] + [(t.name, t.model) for t in spec.training]
    shapes = {name: _shape(predictor.models, model, name) for name, model in asked}
    if spec.training:
        progress("timing training")
    extras = {job.name: ways(job, shapes[job.name], spec, book.accelerators, book.prices) for job in spec.training}
    report = search(
        spec,
        predictor=predictor,
        prices=book.prices,
        shapes=shapes,
        extras=extras,
        confirm=confirming(lengths=question.lengths, progress=progress) if check else None,
        progress=progress,
    ).report
    out = leaving(spec, report.answers, book.transfer) if report.feasible else ()
    return msgspec.structs.replace(report, filled=question.filled, leaving=out)


def _shape(models: "Models", model: str, name: str) -> "ModelShape":
    shape, origin = models.find(model)
    if origin != "config":
        raise SettingsError(
            f"Model {name!r}: no shape is known for {model!r}.",
            hint="Give the path of its config.json, or a name of limits/catalogue/models.toml.",
        )
    return shape
