"""Perplexity and KL divergence from float32 of every scheme, beside llama.cpp's, on text that nothing was fitted to.

    .venv/bin/python bench/engine/fidelity.py [--peers llama|none] [--models guide,stdlib] [--calibrate own|text]

Two trained models: the shipped `guide`, asked the questions of fresh_questions.txt, and one trained here on Python's
standard library (stdlib_model.py; a few minutes the first time), reading files that it was not trained on. These are
the texts to report: nothing was trained, fitted, calibrated or chosen by them. `--text choose` measures on others
(the questions of the guide's system test, and other files), by which a change of the method is to be judged. Our
schemes are made by `baseload quantize` as
anybody would run it; llama.cpp's files by its own quantizer from the same weights in float16, measured in its own
environment on the same tokens against the same float32 log-probabilities.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from environments import ensure
from rich.console import Console
from rich.table import Table
from stdlib_model import ensure as ensure_stdlib

from baseload.domain.model import EngineSpec
from baseload.engine.config import read_json
from baseload.engine.packed import is_packed, open_packed
from baseload.engine.quantize.measure import final_states, measure
from baseload.engine.quantize.source import open_source
from baseload.engine.runner import open_runner
from baseload.engine.spans import Span
from baseload.engine.tokenizer import TextTokenizer
from baseload.train.data import Document, Message
from baseload.train.guide import GuideSource, parse_guide, topic
from baseload.train.tokens import open_encoder

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "src" / "baseload" / "models" / "guide"
SCHEMES = (("w8a8", 0), ("w4a8", 32), ("w4a8", 64), ("w4a8", 128), ("bf16", 0))
PEERS = ("f16", "q8_0", "q4_0", "q4_k", "q6_k")
ROWS, LENGTH = 48, 256


def asked_of(text):
    """The questions, one a line."""
    if text == "fresh":
        return (Path(__file__).parent / "fresh_questions.txt").read_text(encoding="utf-8").splitlines()
    lines = (ROOT / "tests" / "system" / "guide_questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["ask"] for line in lines]


def guide_case(text="choose"):
    """tokens int32[rows, 128] and which count: the answers to the questions of `text`.

    The answer to each is the one that the float32 model begins.
    """
    tokenizer, encoder = open_encoder(GUIDE, prompt_weight=0.0)
    pairs = [pair for path in sorted((ROOT / "docs" / "guide").glob("*.md")) for pair in parse_guide(path)]
    topics = [tokenizer.token_to_id(topic(index)) for index in range(len(pairs))]
    asked = [Message("user", question) for question in asked_of(text)]
    source = open_source(GUIDE)
    head, rows, counts = source.top()["lm_head"][topics], [], []
    for question in asked:
        opened = encoder.render(Document(messages=(question,)), open_answer=True)
        ids = np.array([tokenizer.encode(opened, add_special_tokens=False).ids], np.int32)
        state = final_states(source.config, source.layer, source.top(), ids)[-1]
        chosen = int(np.argmax(head @ state))
        messages = (question, Message("assistant", topic(chosen) + pairs[chosen].answer))
        piece = encoder.encode(Document(messages=messages))
        rows.append(np.pad(np.array(piece.tokens[:128], np.int32), (0, 128 - min(128, len(piece.tokens)))))
        counts.append(np.pad(np.array(piece.weights[:128], np.float32), (0, 128 - min(128, len(piece.weights)))))
    return np.array(rows), np.array(counts)


def guide_text(path):
    """A calibration text for `guide`: the questions as its pages list them, and the answers."""
    pairs = [pair for page in sorted((ROOT / "docs" / "guide").glob("*.md")) for pair in parse_guide(page)]
    path.write_text("\n".join(text for text in GuideSource(pairs).texts()), encoding="utf-8")
    return path


def text_case(folder, path):
    """tokens int32[rows, 256] of a text, every token but each row's first counting."""
    tokenizer, config = TextTokenizer.open(folder), open_source(folder).config
    ids = tokenizer.encode(path.read_text(encoding="utf-8"), special=False)
    body = np.array(ids[: len(ids) // (LENGTH - 1) * (LENGTH - 1)], np.int32).reshape(-1, LENGTH - 1)
    body = body[np.linspace(0, len(body) - 1, min(ROWS, len(body))).astype(int)]
    tokens = np.concatenate([np.full((len(body), 1), config.bos_token_id, np.int32), body], axis=1)
    return tokens, np.ones(tokens.shape, np.float32)


def ours(folder, out, scheme, group, calibrate, case, keep):
    """`baseload quantize` in a process of its own, and the fidelity of what it wrote on what was held out."""
    target = out / f"{scheme}{group or ''}"
    if not (keep and is_packed(target)):
        command = [sys.executable, "-m", "baseload.cli.main", "quantize", folder, "--scheme", scheme, "--out", target]
        command += ["--force", "--json", *(["--group", group] if group else [])]
        command += ["--calibrate", calibrate] if calibrate and scheme != "bf16" else []
        subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, check=True)
    model = open_packed(target)
    found = measure(open_source(folder), model, *case)
    return {
        "what": f"baseload {scheme}" + (f", groups of {group}" if group else ""),
        "bytes": model.weights.blob.size,
        "rotated": model.weights.about.get("rotated"),
        "kept": read_json(target / "config.json")["quantization_config"].get("kept", []),
        "perplexity": found.perplexity,
        "ratio": found.ratio,
        "kl": found.kl,
        "kl_engine": in_the_engine(folder, target, case),
        "agreement": found.agreement,
        "tokens": found.tokens,
        "perplexity_float32": found.perplexity_float32,
    }


def in_the_engine(folder, target, case):
    """KL of the running engine: its kernels, its cache in bfloat16, its paged attention."""
    source, (tokens, counts) = open_source(folder), case
    states = final_states(source.config, source.layer, source.top(), tokens)
    head, total, count = source.top()["lm_head"], 0.0, 0
    spec = EngineSpec(max_seqs=16, max_step_tokens=256, kv_cache_bytes=1 << 26)
    runner = open_runner(target, spec=spec, cache_dir=None)
    blocks = np.arange(-(-tokens.shape[1] // runner.block_tokens), dtype=np.int32)
    for index, row in enumerate(tokens):
        at = []
        for start in range(0, len(row), 16):
            part = row[start : start + 16]
            at.append(runner.run([Span(part, start, blocks, True, len(part))]).copy())
        places = np.flatnonzero(counts[index, 1:] > 0)
        own = jax.nn.log_softmax(np.concatenate(at)[places], axis=-1)
        exact = jax.nn.log_softmax(states[index * len(row) + places] @ head.T, axis=-1)
        total += float(np.sum(np.exp(exact) * (exact - own)))
        count += len(places)
    runner.close()
    return total / count


def write_case(folder, case, path):
    """What a peer needs: the tokens and our float32 log-probabilities."""
    source, (tokens, counts) = open_source(folder), case
    states = final_states(source.config, source.layer, source.top(), tokens)
    rows, places = np.nonzero(counts[:, 1:] > 0)
    at = rows * tokens.shape[1] + places
    logits = states[at] @ source.top()["lm_head"].T
    np.savez(path, tokens=tokens, counts=counts, reference=np.asarray(jax.nn.log_softmax(logits, axis=-1)))


def theirs(python, folder, out, case, float32):
    """Every file of llama.cpp's, or one line that says why not."""
    here = Path(__file__).parent
    kinds = [kind for kind in PEERS if kind != "f16"]
    subprocess.run([str(p) for p in (python, here / "write_gguf.py", folder, out, *kinds)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    write_case(folder, case, out / "case.npz")
    for kind in PEERS:
        model = out / f"{kind}.gguf"
        done = subprocess.run(
            [str(p) for p in (python, here / "peer_fidelity.py", model, out / "case.npz")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        yield {
            "what": f"llama.cpp {kind.upper()}", "bytes": model.stat().st_size, **found,
            "ratio": found["perplexity"] / float32,
        }  # fmt: skip


def show(console, name, rows):
    """One model's table."""
    first = rows[0]
    table = Table(
        title=f"{name}: {first['tokens']:,} held-out tokens, float32 perplexity {first['perplexity_float32']:.4f}"
    )
    for column in ("", "bytes", "perplexity", "KL of the weights", "KL in the engine", "same likeliest"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        engine = f"{row['kl_engine']:.3e}" if "kl_engine" in row else f"{row['kl']:.3e}"
        kl = f"{row['kl']:.3e}" if "kl_engine" in row else ""
        cells = (f"{row['bytes']:,}", f"{row['ratio'] - 1:+.3%}", kl, engine, f"{row['agreement']:.2%}")
        table.add_row(row["what"], *cells)
    console.print(table)


def main():
    """Command line."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="llama", choices=("llama", "none"))
    parser.add_argument("--models", default="guide,stdlib")
    parser.add_argument("--schemes", default="", help="of ours, such as w8a8,w4a8; all of them without")
    parser.add_argument("--calibrate", default="own", choices=("own", "text"), help="the model's words, or a text's")
    parser.add_argument("--text", default="fresh", choices=("fresh", "choose"), help="to report, or to choose by")
    parser.add_argument("--keep", action="store_true", help="measure our folders that are there already")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--cache", type=Path, default=home / "baseload-bench", help="environments of peers")
    asked = parser.parse_args()
    console = Console(stderr=False, width=110)
    python = ensure("llama-native", asked.cache, console) if asked.peers == "llama" else "left out"
    result = {}
    for name in asked.models.split(","):
        out = asked.out / "fidelity" / name
        out.mkdir(parents=True, exist_ok=True)
        if name == "guide":
            folder, case, text = GUIDE, guide_case(asked.text), guide_text(out / "calibrate.txt")
        else:
            folder = ensure_stdlib(asked.out.absolute() / "stdlib", steps=1200)
            held = {"fresh": "fresh.txt", "choose": "held-out.txt"}[asked.text]
            case, text = text_case(folder, folder.parent / held), folder.parent / "calibrate.txt"
        calibrate = text if asked.calibrate == "text" else None
        wanted = [pair for pair in SCHEMES if not asked.schemes or pair[0] in asked.schemes.split(",")]
        rows = [ours(folder, out, *pair, calibrate, case, asked.keep) for pair in wanted]
        if isinstance(python, Path):
            rows += theirs(python, folder, out, case, rows[0]["perplexity_float32"])
        else:
            console.print(f"llama.cpp: {python}")
        show(console, name, rows)
        result[name] = rows
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
