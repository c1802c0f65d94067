"""OpenVINO GenAI's continuous batching on the CPU, from a GGUF file, with its own defaults (its cache is 8-bit)."""

import importlib.metadata

import numpy as np
import openvino
import openvino_genai as genai


class Engine:
    """See child.py."""

    def __init__(self, spec):
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = max(32, spec["most"])
        scheduler.cache_size = -(-spec["kv_bytes"] // (1 << 30))
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": spec["threads"]}
        self.pipe = genai.ContinuousBatchingPipeline(spec["model"], scheduler, "CPU", properties)
        self.about = f"OpenVINO GenAI {importlib.metadata.version('openvino-genai')}"
        self.next = 0
        self.handles = {}

    def add(self, prompt, answer):
        """A request; its handle."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = answer, True, False
        self.next += 1
        ids = openvino.Tensor(np.array([prompt], np.int64))
        return self.pipe.add_request(self.next, ids, config)

    def prefill(self, prompt):
        handle = self.add(prompt, 1)
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        handle.read_all()

    def begin(self, prompts, steps):
        # Those whose prompts come first decode while the others' are read.
        waves = sum(len(prompt) for prompt in prompts) // 1024 + 4
        self.running = [self.add(prompt, steps + waves) for prompt in prompts]
        while not all(handle.can_read() for handle in self.running):
            self.pipe.step()

    def step(self):
        self.pipe.step()

    def finish(self):
        for handle in self.running:
            handle.cancel()
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        self.running = []

    def submit(self, number, prompt, answer):
        self.handles[number] = self.add(prompt, answer)

    def advance(self):
        self.pipe.step()
        got = []
        for number, handle in list(self.handles.items()):
            while handle.can_read():
                tokens = sum(len(output.generated_ids) for output in handle.read().values())
                got += [number] * tokens
        return got
