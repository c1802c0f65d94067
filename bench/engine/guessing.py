"""Guessing ahead on our engine: the same answers, in how many steps and how much time.

    python bench/engine/guessing.py MODEL [--prompts FILE] [--draft DIR] [--guess-tokens 4] [--json OUT]

MODEL is a directory the engine serves. Each line of FILE is a prompt (default: passages of docs/guide, which the
model is asked to go on with). Off, look-up and, with --draft, a draft model take turns over the same prompts, alone
and eight at a time; "/ off" is the median of each turn's ratio. Tokens must be the same, and the command fails where
they are not (XLA's fast bfloat16 mode may differ, see docs/decisions/0014-guessing-ahead.md).
"""

import argparse
import json
import queue
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from msgspec import convert
from rich.console import Console
from rich.table import Table

from baseload.domain.model import EngineSpec
from baseload.domain.sampling import Sampling
from baseload.engine.draft_model import DraftModel
from baseload.engine.guessing import PromptLookups
from baseload.engine.jobs import Delta, Ended, Failed, Job
from baseload.engine.loop import EngineLoop
from baseload.engine.runner import open_runner
from baseload.engine.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    ask = parse()
    with tempfile.TemporaryDirectory() as scratch:
        options = {"max_seqs": 8, "prefix_cache": False, "guess_tokens": ask.guess_tokens, **json.loads(ask.options)}
        spec = convert(options, EngineSpec)
        runner = open_runner(ask.model, spec=spec, cache_dir=Path(scratch))
        runner.warm(background=False)
        tokenizer = TextTokenizer.open(ask.model)
        prompts = [tokenizer.encode(text, special=False) for text in texts(ask)]
        room = runner.max_context - ask.tokens - 1
        prompts = [prompt[:room] for prompt in prompts if prompt][: ask.requests]
        ways = {"off": lambda: None, "prompt": PromptLookups}
        if ask.draft:
            small = open_runner(ask.draft, spec=spec, cache_dir=Path(scratch))
            small.warm(background=False)
            ways["draft"] = lambda: DraftModel(small, most_tokens=spec.max_step_tokens)
        rows, same = [], True
        for width in (1, 8):
            runs: dict[str, list[tuple[float, float, int, float]]] = {way: [] for way in ways}
            made: dict[str, list[list[int]]] = {}
            answer(runner, spec, None, prompts, ask, width)  # nothing is cold when the turns begin
            for turn in range(ask.rounds):
                order = list(ways.items())
                for way, source in order if turn % 2 else order[::-1]:
                    made[way], *figures = answer(runner, spec, source(), prompts, ask, width)
                    runs[way].append(tuple(figures))
            for way, found in runs.items():
                differing = sum(a != b for a, b in zip(made[way], made["off"], strict=True))
                same = same and not differing
                seconds, _, steps, right = (median(column) for column in zip(*found, strict=True))
                ratios = [
                    median(one[at] / off[at] for one, off in zip(found, runs["off"], strict=True)) for at in (0, 1)
                ]
                tokens = sum(map(len, made[way]))
                rows.append([width, way, tokens / seconds, *ratios, steps, right, differing])
        runner.close()
    show(rows)
    if ask.json:
        ask.json.write_text(json.dumps(rows))
    sys.exit(0 if same else 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--guess-tokens", type=int, default=4)
    parser.add_argument("--options", default="{}", help="more of EngineSpec, as JSON")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def texts(ask: argparse.Namespace) -> list[str]:
    """The prompts."""
    if ask.prompts:
        return ask.prompts.read_text().splitlines()
    pages = sorted((ROOT / "docs" / "guide").glob("*.md"))
    return [page.read_text()[:400] for page in pages]


def answer(runner, spec, source, prompts, ask, width) -> tuple[list[list[int]], float, float, int, float]:
    """(tokens by prompt, seconds, CPU seconds, steps, share of guesses that were right), `width` at a time."""
    outputs: queue.SimpleQueue = queue.SimpleQueue()
    fatal: list[BaseException] = []
    loop = EngineLoop(runner, lambda token: b"x", spec=spec, emit=outputs.put, on_fatal=fatal.append, guesser=source)
    loop.start()
    sampling = Sampling(max_tokens=ask.tokens, temperature=ask.temperature, ignore_eos=True)
    made: dict[str, list[int]] = {f"{i}": [] for i in range(len(prompts))}
    began, used, sent, ended = time.perf_counter(), time.process_time(), 0, 0
    while ended < len(prompts):
        while sent < len(prompts) and sent - ended < width:
            loop.submit(Job(f"{sent}", [prompts[sent]], sampling, seed=sent))
            sent += 1
        for output in outputs.get(timeout=600):
            if isinstance(output, Delta):
                made[output.request_id].append(output.token)
            elif isinstance(output, Failed):
                raise output.refusal
            elif isinstance(output, Ended):
                ended += 1
    seconds, used = time.perf_counter() - began, time.process_time() - used
    totals = loop.totals
    loop.close()
    if fatal:
        raise fatal[0]
    return list(made.values()), seconds, used, totals.steps, totals.right_tokens / max(1, totals.guessed_tokens)


def show(rows: list[list[float]]) -> None:
    """The table."""
    names = ("at a time", "guesses", "tokens/s", "time / off", "CPU / off", "steps", "right", "answers that differ")
    table = Table(*names)
    for width, way, rate, time_ratio, cpu_ratio, steps, right, differing in rows:
        ratios = f"{time_ratio:.3f}", f"{cpu_ratio:.3f}"
        table.add_row(f"{width}", way, f"{rate:.0f}", *ratios, f"{steps:.0f}", f"{right:.0%}", f"{differing}")
    Console().print(table)


if __name__ == "__main__":
    main()
