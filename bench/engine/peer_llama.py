"""llama.cpp through llama-cpp-python's C API: a context for each point, flash attention as it chooses."""

import ctypes

import llama_cpp as c
import numpy as np

CHUNK = 512  # tokens of one call while serving, as llama-server has it


class Engine:
    """See child.py."""

    def __init__(self, spec):
        self.spec = spec
        self.keep = c.llama_log_callback(lambda *_: None)
        c.llama_log_set(self.keep, ctypes.c_void_p(0))
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = c.llama_model_load_from_file(spec["model"].encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {spec['model']}")
        self.about = f"llama-cpp-python {c.__version__}; " + c.llama_print_system_info().decode().strip()
        self.context = None
        self.batch = c.llama_batch_init(4096, 0, 1)
        self.serving = {}

    def open(self, sequences, tokens_each, *, unified=False):
        """A new context; the earlier one is freed."""
        if self.context:
            c.llama_free(self.context)
        params = c.llama_context_default_params()
        each = -(-tokens_each // 256) * 256
        params.n_ctx, params.n_seq_max = each * sequences, sequences
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_threads = params.n_threads_batch = self.spec["threads"]
        params.kv_unified = unified
        params.no_perf = True
        self.context = c.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))

    def run(self, rows):
        """rows: (token, position, sequence, wants logits)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wants
        code = c.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")

    def choose(self, row):
        """The likeliest token of a row."""
        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(self.context, row), (self.vocab,)).argmax())

    def fill(self, prompt, sequence):
        """A prompt into the cache; the token after it."""
        for first in range(0, len(prompt), 2048):
            part = prompt[first : first + 2048]
            self.run([(t, first + i, sequence, i + first == len(prompt) - 1) for i, t in enumerate(part)])
        return self.choose(len(part) - 1)

    def prefill(self, prompt):
        if self.context is None or c.llama_n_ctx(self.context) < len(prompt) or c.llama_n_seq_max(self.context) != 1:
            self.open(1, max(512, len(prompt)))
        c.llama_memory_clear(c.llama_get_memory(self.context), False)
        self.fill(prompt, 0)

    def begin(self, prompts, steps):
        self.open(len(prompts), len(prompts[0]) + steps + 1)
        self.tokens, self.at = [self.fill(prompts[0], 0)] * len(prompts), len(prompts[0])
        for sequence in range(1, len(prompts)):  # real copies: the streams are separate
            c.llama_memory_seq_cp(c.llama_get_memory(self.context), 0, sequence, -1, -1)

    def step(self):
        self.run([(token, self.at, sequence, True) for sequence, token in enumerate(self.tokens)])
        self.tokens = [self.choose(row) for row in range(len(self.tokens))]
        self.at += 1

    def finish(self):
        c.llama_free(self.context)
        self.context = None

    def submit(self, number, prompt, answer):
        if not self.serving:
            self.free = list(range(self.spec["most"]))
            self.open(self.spec["most"], len(prompt) + answer + 1, unified=True)
        self.serving[number] = [prompt, 0, answer, None, None]  # prompt, done, left, sequence, token

    def advance(self):
        """Decodes of all that run, and prompts in the order of arrival while there is room."""
        rows, got = [], []
        for number, one in self.serving.items():
            if one[4] is not None:
                rows.append((one[4], one[1], one[3], True))
                got.append((number, len(rows) - 1))
        for number, one in self.serving.items():
            prompt, done = one[0], one[1]
            if one[4] is not None or len(rows) >= CHUNK:
                continue
            if one[3] is None:
                if not self.free:
                    break
                one[3] = self.free.pop()
            part = prompt[done : done + CHUNK - len(rows)]
            is_last = done + len(part) == len(prompt)
            rows += [(t, done + i, one[3], is_last and i == len(part) - 1) for i, t in enumerate(part)]
            one[1] += len(part)
            if is_last:
                got.append((number, len(rows) - 1))
        self.run(rows)
        for number, row in got:
            one = self.serving[number]
            one[1] += one[4] is not None
            one[4] = self.choose(row)
            one[2] -= 1
            if not one[2]:
                c.llama_memory_seq_rm(c.llama_get_memory(self.context), one[3], -1, -1)
                self.free.append(one[3])
                del self.serving[number]
        return [number for number, _ in got]
