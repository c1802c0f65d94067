"""The command `baseload`, also `python -m baseload.cli`: Ctrl-C ends it quietly, while modules are imported too."""

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130  # as `cli.screen` has it, which is not imported yet
_IMPORTS = "<frozen importlib._bootstrap>"  # the file that Python gives for its import machinery
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


def run() -> None:
    """Import the commands and run the one that was asked for."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    # Here, and not above: from now on it is quiet.
    from baseload.cli.main import run as command  # noqa: PLC0415

    command()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the process where it struck an import, raises KeyboardInterrupt elsewhere.

    An exception in the middle of an import shows where it struck, is swallowed, or (in a library's native part) makes
    the process crash. Commands import what is heavy before they begin, so that nothing is left in disorder.
    """
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
