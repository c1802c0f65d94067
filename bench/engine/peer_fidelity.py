"""llama.cpp on the same tokens: perplexity and KL divergence from given float32 log-probabilities. Its environment.

    python peer_fidelity.py MODEL.gguf CASE.npz

CASE holds tokens int32[rows, length], counts float32[rows, length] (of which tokens the prediction counts) and
reference float32[n, vocab], the log-probabilities before each of those. Prints one line of JSON.
"""

import ctypes
import json
import math
import sys

import llama_cpp as c
import numpy as np
from peer_llama import Engine


def main():
    """Row after row, a fresh sequence each."""
    case = np.load(sys.argv[2])
    tokens, counts, reference = case["tokens"], case["counts"], case["reference"]
    engine = Engine({"model": sys.argv[1], "threads": 2})
    engine.open(1, tokens.shape[1])
    loss = divergence = same = 0.0
    at = 0
    for row, counted in zip(tokens, counts, strict=True):
        c.llama_memory_clear(c.llama_get_memory(engine.context), True)
        engine.run([(int(token), place, 0, True) for place, token in enumerate(row)])
        raw = ctypes.cast(c.llama_get_logits(engine.context), ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(raw, (len(row), engine.vocab)).astype(np.float64)
        places = np.flatnonzero(counted[1:] > 0)
        shifted = logits[places] - logits[places].max(axis=1, keepdims=True)
        own = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        exact = reference[at : at + len(places)].astype(np.float64)[:, : own.shape[1]]
        at += len(places)
        loss -= own[np.arange(len(places)), row[places + 1]].sum()
        divergence += (np.exp(exact) * (exact - own)).sum()
        same += (exact.argmax(axis=1) == own.argmax(axis=1)).sum()
    print(
        json.dumps({"tokens": at, "perplexity": math.exp(loss / at), "kl": divergence / at, "agreement": same / at})
    )


main()
