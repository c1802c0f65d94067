"""Makes rope.json beside this file: what transformers computes from rotary settings, in float32.

Run it in an environment of its own (torch and transformers are no dependency of Baseload or its tests):

    python -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/hf/bin/python tests/golden/rope/make_rope.py

Each case has the settings as they stand in a config.json, and the frequencies and the attention factor that
ROPE_INIT_FUNCTIONS gives for them.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CASES = {
    "qwen2.5": (YARN, 128, 131072),
    "no truncation": ({**YARN, "truncate": False}, 128, 131072),
    "betas": ({**YARN, "beta_fast": 64.0, "beta_slow": 2.0, "rope_theta": 1e4}, 64, 131072),
    "attention factor": ({**YARN, "attention_factor": 0.75}, 64, 131072),
    "mscales": ({**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707, "rope_theta": 1e4}, 64, 1310720),
    "equal mscales": ({**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, 64, 131072),
    "one mscale": ({**YARN, "mscale": 0.5}, 64, 131072),
    "no factor": ({**YARN, "factor": None}, 64, 262144),
    "a short original context": ({**YARN, "original_max_position_embeddings": 32, "rope_theta": 1e4}, 8, 128),
    "a bound beyond the last pair": ({**YARN, "beta_slow": 1e-9, "rope_theta": 100.0}, 16, 131072),
    "both bounds at one pair": ({**YARN, "original_max_position_embeddings": 6, "rope_theta": 1e9}, 16, 24),
    "llama3": ({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, **LLAMA3}, 128, 131072),
    "linear": ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, 128, 8192),
    "dynamic": ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 128, 8192),
}


def compute(rope, head_dim, context):
    """One case."""
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=context, rope_parameters=dict(rope))
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    shown = [float(f"{value:.9g}") for value in frequencies.tolist()]
    return {"rope": rope, "head_dim": head_dim, "context": context, "frequencies": shown, "factor": float(factor)}


if __name__ == "__main__":
    made = {name: compute(*case) for name, case in CASES.items()}
    about = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": made}
    Path(__file__).with_name("rope.json").write_text(json.dumps(about, indent=1) + "\n")
