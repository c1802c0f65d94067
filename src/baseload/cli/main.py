"""The command `baseload`: every subcommand by name, and one place where errors become words and exit codes."""

import platform
import sys
from importlib.metadata import version as installed_version

import typer

from baseload.cli import (
    catalogue,
    chat,
    compare,
    doctor,
    inspect,
    lab,
    manage,
    plan,
    predict,
    predict_fleet,
    quantize,
    replay,
    up,
    validate,
)
from baseload.cli.flags import AsJson
from baseload.cli.screen import (
    FAILURE,
    INTERRUPTED,
    USAGE,
    complain,
    exit_code,
    print_json,
    ready_streams,
    say,
    unwritten,
)
from baseload.domain.errors import BaseloadError

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 no running Baseload admits us (or: no plan keeps all "
    "limits), 130 interrupted."
)

app = typer.Typer(
    name="baseload",
    help="An operating layer that runs AI like a utility: plan, run, explain, inside declared limits.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("status")(inspect.status)
app.add_typer(manage.models, name="models")
app.add_typer(manage.keys, name="keys")
app.command("chat")(chat.chat)
app.command("usage")(inspect.usage)
app.command("events")(inspect.events)
app.command("doctor")(doctor.doctor)
app.command("train")(lab.train)
app.command("quantize")(quantize.quantize)
app.add_typer(replay.simulate, name="simulate")
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
predict.predict.command("training")(predict_fleet.training)
predict.predict.command("throughput")(predict_fleet.throughput)
app.add_typer(predict.predict, name="predict")
app.command("validate")(validate.validate)
app.command("catalogue")(catalogue.catalogue)


@app.command("version")
def version(as_json: AsJson = False) -> None:
    """The versions of Baseload and Python."""
    own, python = installed_version("baseload"), platform.python_version()
    if as_json:
        print_json({"baseload": own, "python": python})
    else:
        say(f"baseload {own} (Python {python})")


def run() -> None:
    """The entry point: errors of the user's making end in words, never in a traceback."""
    ready_streams()
    try:
        app()
    except BaseloadError as error:
        complain(error)
        sys.exit(exit_code(error))
    except RecursionError:
        complain(BaseloadError("A file that was given is nested too deeply.", hint="Check that it is the right one."))
        sys.exit(USAGE)
    except BrokenPipeError:  # the reader of our output has gone, as in `baseload events | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a full disk, for one
        complain(unwritten(error))
        sys.exit(FAILURE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
