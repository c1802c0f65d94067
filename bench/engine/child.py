"""One engine in one process: loads, answers the points asked for, says a line of JSON for each, ends.

    python child.py ENGINE SPEC     ENGINE: a module beside this one with a class Engine; SPEC: JSON

SPEC has `model` (path), `threads`, `vocab`, `kv_tokens` (room the cache needs), `longest` (tokens of the longest
sequence), `most` (sequences at once), `points`, and `options` for the engine. Needs nothing but NumPy and the engine.
An Engine has prefill(tokens), begin(batch, context, steps), step(), finish(), and for mixed arrivals
submit(number, tokens, answer) and advance() → numbers that got a token, or serve(...) of its own; `about` in words.
"""

import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

WARM_STEPS = 2


def say(**line):
    """One answer. Not through print: engines write to standard output too."""
    os.write(OUT, json.dumps(line).encode() + b"\n")


def measure_prefill(engine, point, rng, vocab):
    """Seconds for one prompt, logits of its last token: least of the repeats."""
    prompts = [rng.integers(1, vocab, point["tokens"]).tolist() for _ in range(point["repeats"] + 1)]
    times = []
    for prompt in prompts:
        began = time.perf_counter()
        engine.prefill(prompt)
        times.append(time.perf_counter() - began)
    return {"seconds": min(times[1:]), "rate": point["tokens"] / min(times[1:])}


def measure_decode(engine, point, rng, vocab):
    """Tokens per second of `batch` sequences that have `context` tokens behind them; greedy choice included."""
    batch, steps = point["batch"], point["steps"]
    prompts = [rng.integers(1, vocab, point["context"]).tolist() for _ in range(batch)]
    engine.begin(prompts, WARM_STEPS + steps)
    for _ in range(WARM_STEPS):
        engine.step()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    engine.finish()
    half = sorted(times)[
        : max(1, (steps + 1) // 2)
    ]  # the faster half: a neighbour's interruption is not the engine's
    return {"seconds": sum(times), "rate": batch * len(half) / sum(half), "rate_all": batch * steps / sum(times)}


def measure_mixed(engine, point, rng, vocab):
    """Requests that arrive while others decode: time to first token, and per token after it."""
    gaps = np.random.default_rng(7).exponential(1 / point["per_s"], point["requests"])
    arrivals = np.cumsum(gaps) - gaps[0]
    prompts = [rng.integers(1, vocab, point["prompt"]).tolist() for _ in arrivals]
    serve = getattr(engine, "serve", None) or (lambda *given: replay(engine, *given))
    seen, began = serve(prompts, arrivals.tolist(), point["answer"])
    ttft = [tokens[0] - at - began for tokens, at in zip(seen, arrivals, strict=True)]
    tpot = [(tokens[-1] - tokens[0]) / (len(tokens) - 1) for tokens in seen]
    spent = max(tokens[-1] for tokens in seen) - began
    return {
        "seconds": spent,
        "rate": len(seen) * point["answer"] / spent,
        "ttft_p50": float(np.percentile(ttft, 50)),
        "ttft_p99": float(np.percentile(ttft, 99)),
        "tpot_p50": float(np.percentile(tpot, 50)),
        "tpot_p99": float(np.percentile(tpot, 99)),
    }


def replay(engine, prompts, arrivals, answer):
    """Hand requests in when they are due and take steps while any is open."""
    seen = [[] for _ in prompts]
    began, at, unfinished = time.perf_counter(), 0, 0
    while at < len(prompts) or unfinished:
        now = time.perf_counter() - began
        while at < len(prompts) and arrivals[at] <= now:
            engine.submit(at, prompts[at], answer)
            at, unfinished = at + 1, unfinished + 1
        if not unfinished:
            time.sleep(max(0.0, arrivals[at] - now))
            continue
        for number in engine.advance():
            if len(seen[number]) < answer:
                seen[number].append(time.perf_counter())
                unfinished -= len(seen[number]) == answer
    return seen, began


MEASURES = {"prefill": measure_prefill, "decode": measure_decode, "mixed": measure_mixed}


def load(name):
    """The module beside this one, and none of the others: a peer may look for one of the same name (`kernels`)."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    found = importlib.util.spec_from_file_location(name, here / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def main():
    """Load, answer, end."""
    spec = json.loads(sys.argv[2])
    module = load(sys.argv[1])
    rng = np.random.default_rng(1)
    engine = module.Engine(spec)
    loaded = time.time()
    engine.prefill(rng.integers(1, spec["vocab"], 16).tolist())
    say(what="first", at=time.time(), loaded=loaded, about=engine.about)
    for point in spec["points"]:
        if point["what"] == "mixed" and not (hasattr(engine, "advance") or hasattr(engine, "serve")):
            say(point=point, unsupported="takes no requests while others run")
            continue
        try:
            found = MEASURES[point["what"]](engine, point, rng, spec["vocab"])
        except Exception as error:  # one point that fails is reported; the others are still measured
            say(point=point, failed=f"{type(error).__name__}: {error}"[:300])
            continue
        say(point=point, **found)
    say(what="end", peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    os._exit(0)  # tearing an engine down measures nothing


OUT = 1
if __name__ == "__main__":
    OUT = os.dup(1)
    os.dup2(2, 1)
    main()
