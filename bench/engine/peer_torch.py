"""transformers on torch, eager, in bfloat16. It serves one batch at a time: no requests join those that run."""

import torch
import transformers


class Engine:
    """See child.py."""

    def __init__(self, spec):
        torch.set_num_threads(spec["threads"])
        torch.set_grad_enabled(False)
        model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.bfloat16)
        self.model = model.eval()
        self.about = f"torch {torch.__version__}, transformers {transformers.__version__}, bfloat16"

    def run(self, tokens, cache=None):
        """Logits of the last position, and the cache."""
        return self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def prefill(self, prompt):
        self.run(torch.tensor([prompt]))

    def begin(self, prompts, steps):
        out = self.run(torch.tensor(prompts[:1]))
        self.cache = out.past_key_values
        self.cache.batch_repeat_interleave(len(prompts))
        self.tokens = out.logits[:, -1].argmax(-1, keepdim=True).repeat(len(prompts), 1)

    def step(self):
        out = self.run(self.tokens, self.cache)
        self.tokens, self.cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def finish(self):
        self.cache = None
