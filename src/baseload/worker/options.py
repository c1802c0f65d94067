"""What a worker is told on its command line. Light to import: a spare reads it before anything heavy is there."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from baseload.domain.model import EngineSpec


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    model_dir: Path
    name: str
    host: str
    port: int
    spec: EngineSpec
    cache_dir: Path | None
    replica_id: str
    ready_file: Path | None
    lease_file: Path | None


def parse(arguments: Sequence[str]) -> Options:
    """The options; ends the process with 2 and a line on stderr where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m baseload.worker", description="The process that holds an engine and serves it."
    )
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
    return Options(
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
