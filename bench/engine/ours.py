"""Baseload's runner for single points, and its engine loop for mixed arrivals."""

import importlib.metadata
import queue
import threading
import time
from pathlib import Path

import jax
import numpy as np
from msgspec import convert

from baseload.domain.model import EngineSpec
from baseload.domain.sampling import Sampling
from baseload.engine.jobs import Delta, Failed, Job
from baseload.engine.loop import EngineLoop
from baseload.engine.runner import open_runner
from baseload.engine.spans import Span


class Engine:
    """See child.py."""

    def __init__(self, spec):
        self.spec = spec
        options = {"max_seqs": 32, "max_context": spec["longest"], "threads": 0, **spec["options"]}
        self.engine_spec = convert({**options, "kv_cache_bytes": spec["kv_bytes"]}, EngineSpec)
        self.runner = open_runner(Path(spec["model"]), spec=self.engine_spec, cache_dir=Path(spec["cache"]))
        self.about = f"Baseload {importlib.metadata.version('baseload')}, JAX {jax.__version__}, {spec['options']}"
        self.is_warm = False

    def warm(self):
        """Every program at hand, before anything is timed."""
        if not self.is_warm:
            self.runner.warm(background=False)
            self.is_warm = True

    def room(self, sequences, tokens):
        """Blocks for each sequence."""
        each = -(-tokens // self.runner.block_tokens)
        if sequences * each > self.runner.num_blocks:
            raise RuntimeError(f"{self.runner.num_blocks} blocks do not hold {sequences} × {tokens} tokens")
        return [np.arange(i * each, (i + 1) * each, dtype=np.int32) for i in range(sequences)]

    def fill(self, prompt, blocks):
        """A prompt into the cache in steps as the batcher makes them; the token after it."""
        most = self.engine_spec.max_step_tokens
        for first in range(0, len(prompt), most):
            part = np.array(prompt[first : first + most], np.int32)
            logits = self.runner.run([Span(part, first, blocks, first + most >= len(prompt))])
        return int(logits[0].argmax())

    def prefill(self, prompt):
        if len(prompt) > 16:  # the first token of the process is not waited for
            self.warm()
        self.fill(prompt, self.room(1, len(prompt))[0])

    def begin(self, prompts, steps):
        self.warm()
        self.blocks = self.room(len(prompts), len(prompts[0]) + steps)
        pairs = zip(prompts, self.blocks, strict=True)
        self.tokens = np.array([self.fill(prompt, blocks) for prompt, blocks in pairs], np.int32)
        self.at = len(prompts[0])

    def step(self):
        spans = [Span(self.tokens[i : i + 1], self.at, blocks, True) for i, blocks in enumerate(self.blocks)]
        self.tokens = self.runner.run(spans).argmax(-1).astype(np.int32)
        self.at += 1

    def finish(self):
        self.blocks = []

    def serve(self, prompts, arrivals, answer):
        """The engine loop, as the worker runs it, without HTTP."""
        self.warm()
        seen, ended, broken = [[] for _ in prompts], queue.Queue(), []

        def emit(outputs):
            now = time.perf_counter()
            for output in outputs:
                if isinstance(output, Delta):
                    seen[int(output.request_id)].append(now)
                else:
                    ended.put(output)

        loop = EngineLoop(self.runner, lambda _: b"x", spec=self.engine_spec, emit=emit, on_fatal=broken.append)
        loop.start()
        sampling = Sampling(max_tokens=answer, temperature=0.0, ignore_eos=True)
        began = time.perf_counter()
        for number, (prompt, at) in enumerate(zip(prompts, arrivals, strict=True)):
            threading.Event().wait(max(0.0, at - (time.perf_counter() - began)))
            loop.submit(Job(str(number), [prompt], sampling, number))
        for _ in prompts:
            output = ended.get(timeout=120)
            if isinstance(output, Failed):
                raise RuntimeError(str(output.refusal))
        loop.close()
        return seen, began
