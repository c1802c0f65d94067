"""`python -m baseload.worker`: the process that holds an engine and serves it; --spare waits to be told which."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from baseload.domain.errors import BaseloadError
from baseload.worker import read_ahead, spare
from baseload.worker.options import parse


def main(arguments: Sequence[str]) -> int:
    """Parse and serve. The exit code: 0 after a drain, 1 where the model or the engine failed, 2 for usage."""
    if spare.FLAG in arguments:
        given = spare.wait(arguments)
        if given is None:
            return 0
        arguments = given
    options = parse(arguments)
    draft = options.spec.draft
    read_ahead.begin(options.model_dir, *([Path(draft)] if draft else []))
    process = importlib.import_module("baseload.worker.process")  # heavy: after the command line is known to be right
    try:
        code: int = process.run(options)
    except BaseloadError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do; tearing JAX down would take longer than the rest of the drain
