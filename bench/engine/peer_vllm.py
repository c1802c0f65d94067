"""vLLM on the CPU, in this process, with its defaults."""

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import importlib.metadata


class Engine:
    """See child.py."""

    def __init__(self, spec):
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(-(-spec["kv_bytes"] // (1 << 30)))
        import vllm  # reads the variables

        self.vllm = vllm
        llm = vllm.LLM(
            model=spec["model"],
            dtype="bfloat16",
            max_model_len=spec["longest"],
            max_num_seqs=max(32, spec["most"]),
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self.engine = llm.llm_engine
        self.about = f"vLLM {importlib.metadata.version('vllm-cpu')} (vllm-cpu), bfloat16"
        self.next = 0
        self.seen = {}
        self.names = {}

    def add(self, prompt, answer):
        """A request; its name."""
        self.next += 1
        params = self.vllm.SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(self.next), self.vllm.TokensPrompt(prompt_token_ids=prompt), params)
        return str(self.next)

    def take(self):
        """One step; how many new tokens each request got."""
        got = {}
        for output in self.engine.step():
            count = len(output.outputs[0].token_ids)
            new = count - self.seen.get(output.request_id, 0)
            self.seen[output.request_id] = count
            if new > 0:
                got[output.request_id] = new
        return got

    def prefill(self, prompt):
        self.add(prompt, 1)
        while self.engine.has_unfinished_requests():
            self.take()

    def begin(self, prompts, steps):
        waves = sum(len(prompt) for prompt in prompts) // 1024 + 4
        self.running = [self.add(prompt, steps + waves) for prompt in prompts]
        started = set()
        while len(started) < len(prompts):
            started |= set(self.take())

    def step(self):
        self.take()

    def finish(self):
        self.engine.abort_request(self.running)
        while self.engine.has_unfinished_requests():
            self.take()

    def submit(self, number, prompt, answer):
        self.names[self.add(prompt, answer)] = number

    def advance(self):
        return [self.names[name] for name, count in self.take().items() for _ in range(count)]
