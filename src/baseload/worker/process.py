"""The worker's life: load, serve, drain, end."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import uvloop

from baseload.domain.errors import ModelError
from baseload.engine.generation import read_defaults
from baseload.engine.guessing import GuessSource
from baseload.engine.kept_times import KeptTimes
from baseload.engine.loop import EngineLoop
from baseload.engine.spans import ModelRunner
from baseload.engine.structured import GrammarCompiler
from baseload.engine.tokenizer import TextTokenizer
from baseload.files import write_whole
from baseload.net.server import serve
from baseload.worker.app import WorkerApp
from baseload.worker.guesses import open_model
from baseload.worker.options import Options
from baseload.worker.prepare import Served

LEASE_CHECK_S = 5.0
LEASE_S = 60.0
_NO_LIMIT_S = 30 * 24 * 3600.0  # a drain is bounded by whoever asked for it
_SWITCH_INTERVAL_S = 0.0005  # the engine's thread must not hold the event loop back for Python's 5 ms


def run(options: Options) -> int:
    """Serve until told to end; the exit code, with which the caller ends the process.

    Raises ModelError where the model cannot be served.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    options = _unpacked(options)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(TextTokenizer.open, options.model_dir)
        runner, guesser = open_model(options.model_dir, spec=options.spec, cache_dir=options.cache_dir)
        tokenizer = opening.result()
    return uvloop.run(
        _serve(options, runner, tokenizer, guesser)
    )  # the process ends next: nobody waits for the warming thread


def _unpacked(options: Options) -> Options:
    """With the folders that GGUF files are served from, made in the cache the first time; else as they are."""
    spec = options.spec
    drafts = Path(spec.draft) if spec.draft else None
    if not options.model_dir.is_file() and not (drafts is not None and drafts.is_file()):
        return options
    if options.cache_dir is None:
        raise ModelError("A GGUF file is unpacked into the cache folder once.", hint="Name one with --cache-dir.")
    # Here, and not above: waking any other model must not wait for it.
    from baseload.engine.gguf.convert import model_folder  # noqa: PLC0415

    if drafts is not None:
        spec = msgspec.structs.replace(spec, guess=str(model_folder(drafts, options.cache_dir)))
    exact = spec.dtype == "float32" or spec.kernels == "xla"
    folder = model_folder(options.model_dir, options.cache_dir, exact=exact)
    return replace(options, model_dir=folder, spec=spec)


async def _serve(options: Options, runner: ModelRunner, tokenizer: TextTokenizer, guesser: GuessSource | None) -> int:
    loop = asyncio.get_running_loop()
    ending: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not ending.done():
            ending.set_result(code)

    def on_fatal(error: BaseException) -> None:
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
        loop.call_soon_threadsafe(end, 1)

    app = WorkerApp(_served(options, runner, tokenizer), loop=loop, block_tokens=runner.block_tokens)
    folder = None if options.cache_dir is None else options.cache_dir / "times"
    kept = KeptTimes(folder, runner.programs.identity)
    engine = EngineLoop(
        runner, tokenizer.token_bytes, spec=options.spec, emit=app.emit, on_fatal=on_fatal, guesser=guesser,
        times=kept.load(), keep=kept.save,
    )  # fmt: skip
    app.open(engine)
    engine.start()
    runner.warm()
    server = await serve(app.handle, host=options.host, port=options.port)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    lease = loop.create_task(_watch_lease(options.lease_file, end)) if options.lease_file is not None else None
    _announce(f"http://{options.host}:{server.port}", options.ready_file)
    code = await ending
    app.draining = True
    if lease is not None:
        lease.cancel()
    await server.close(_NO_LIMIT_S if code == 0 else 1.0)
    engine.close()
    return code


def _served(options: Options, runner: ModelRunner, tokenizer: TextTokenizer) -> Served:
    grammars = GrammarCompiler(tokenizer.to_json, vocab_size=tokenizer.vocab_size, eos_token_ids=runner.eos_token_ids)
    return Served(
        name=options.name,
        replica_id=options.replica_id,
        tokenizer=tokenizer,
        grammars=grammars,
        vocab_size=runner.vocab_size,
        max_context=min(runner.max_context, runner.num_blocks * runner.block_tokens),
        capacity=options.spec.max_seqs + options.spec.max_waiting,
        defaults=read_defaults(options.model_dir),
    )


def _announce(url: str, ready_file: Path | None) -> None:
    line = json.dumps({"ready": url})
    if ready_file is not None:
        write_whole(ready_file, [line.encode(), b"\n"])
    with contextlib.suppress(BrokenPipeError):  # whoever started us may be gone; others find the ready file
        print(line, flush=True)


async def _watch_lease(lease_file: Path, end: Callable[[int], None]) -> None:
    """End the worker when nobody has touched the lease for long: the control process will not come back."""
    last = time.time()
    while True:
        await asyncio.sleep(LEASE_CHECK_S)
        with contextlib.suppress(OSError):  # not there (yet): it counts as untouched
            last = max(last, os.stat(lease_file).st_mtime)  # noqa: PTH116  # local and rare
        if time.time() - last > LEASE_S:
            print(f"The lease {lease_file} has not been renewed for {LEASE_S:.0f} s: ending.", file=sys.stderr)
            end(0)
            return
