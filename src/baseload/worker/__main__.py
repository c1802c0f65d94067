"""`python -m baseload.worker`: the process that holds an engine and serves it."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from baseload.domain.errors import BaseloadError
from baseload.domain.model import EngineSpec
from baseload.worker.process import Options, run


def main(arguments: Sequence[str]) -> int:
    """Parse and serve. The exit code: 0 after a drain, 1 where the model or the engine failed, 2 for usage."""
    parser = argparse.ArgumentParser(prog="python -m baseload.worker", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face directory")
    parser.add_argument("--name", required=True, help="the model's name in requests")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--spec-json", default="{}", help="EngineSpec as JSON")
    parser.add_argument("--cache-dir", type=Path, help="keeps compiled programs")
    parser.add_argument("--replica-id", default="", help="shown in /health")
    parser.add_argument("--ready-file", type=Path, help="written once it serves")
    parser.add_argument("--lease-file", type=Path, help="it ends itself when this was not touched for 60 s")
    parsed = parser.parse_args(arguments)
    try:
        spec = msgspec.json.decode(parsed.spec_json, type=EngineSpec)
    except msgspec.DecodeError as error:
        parser.error(f"--spec-json: {error}")
    options = Options(
        model_dir=parsed.model,
        name=parsed.name,
        host=parsed.host,
        port=parsed.port,
        spec=spec,
        cache_dir=parsed.cache_dir,
        replica_id=parsed.replica_id,
        ready_file=parsed.ready_file,
        lease_file=parsed.lease_file,
    )
    try:
        return run(options)
    except BaseloadError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do; tearing JAX down would take longer than the rest of the drain
