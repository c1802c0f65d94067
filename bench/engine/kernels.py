"""The matrix kernels alone, without XLA, on the 386 M-parameter Llama shape: what they reach of the machine's limits.

    .venv/bin/python bench/engine/kernels.py [--isa avx512,avx2] [--schemes w8,w4,bf16] [--rows 1,8,32] [--json FILE]

One pass is every matrix product of one step: 24 layers (queries, keys and values; output; gate and up with SwiGLU;
down) and the head, each layer with its own memory, on all threads. Read bandwidth and the peak of int8 and bfloat16
arithmetic on registers (or tiles) are measured before each round in the same process; rounds take all points in turn,
and the best of each is printed. Values are random: speed does not depend on them.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from baseload.engine.native import packing
from baseload.engine.native.library import load
from baseload.engine.native.limits import Alone, Limits

HIDDEN, INTERMEDIATE, QKV, VOCAB, LAYERS = 1024, 3328, 2048, 32000, 24
EPS = 1e-5


def pack(scheme, weight):
    """One random matrix of this scheme."""
    if scheme == "w8":
        return packing.quantize_w8(weight)
    return packing.quantize_w4(weight, 32) if scheme == "w4" else packing.pack_bf16(weight)


class Model:
    """Every matrix of one model in one scheme; `run` is one step's products for `rows` rows."""

    def __init__(self, library, isa, scheme):
        rng = np.random.default_rng(0)

        def matrix(n, k):
            return pack(scheme, rng.normal(size=(n, k)).astype(np.float32))

        one = [
            matrix(QKV, HIDDEN),
            matrix(HIDDEN, HIDDEN),
            matrix(2 * INTERMEDIATE, HIDDEN),
            matrix(HIDDEN, INTERMEDIATE),
        ]
        self.layers = [[Alone(library, isa, part) for part in one] for _ in range(LAYERS)]
        head = matrix(VOCAB, HIDDEN)
        self.head = Alone(library, isa, head)
        self.layer_bytes, self.head_bytes = sum(part.data.nbytes for part in one), head.data.nbytes
        self.layer_values = sum(part.n * part.k for part in one)

    def run(self, x):
        """Seconds of one pass over x[rows, hidden]; the head sees each sequence's last row, at most 32."""
        began = time.perf_counter()
        for qkv, out, gate_up, down in self.layers:
            qkv.product(x, eps=EPS)
            out.product(x)
            down.product(gate_up.product(x, eps=EPS, swiglu=True, columns=INTERMEDIATE))
        self.head.product(x[: self.head_rows(x)], eps=EPS)
        return time.perf_counter() - began

    def head_rows(self, x):
        """Rows whose next token is asked for: all when decoding, one of a long prompt."""
        return len(x) if len(x) <= 32 else 1

    def work(self, rows):
        """Bytes read at least, and operations, of one pass."""
        x = np.empty((rows, 0))
        values = LAYERS * self.layer_values * rows + VOCAB * HIDDEN * self.head_rows(x)
        return LAYERS * self.layer_bytes + self.head_bytes, 2 * values


def measure(library, args):
    """Seconds per (isa, scheme, rows), best of the rounds, and the limits, best of the rounds."""
    limits = Limits(library)
    peaks = {"read": 0.0, "int8": 0.0, "bf16": 0.0}
    best, work = {}, {}
    rng = np.random.default_rng(1)
    inputs = {rows: rng.normal(size=(rows, HIDDEN)).astype(np.float32) for rows in args.rows}
    for isa in args.isa:
        for scheme in args.schemes:
            model = Model(library, isa, scheme)
            for _ in range(args.rounds):
                peaks["read"] = max(peaks["read"], limits.bandwidth_gb_s(rounds=1) * 1e9)
                peaks["int8"] = max(peaks["int8"], limits.int8_tops() * 1e12)
                peaks["bf16"] = max(peaks["bf16"], limits.bf16_tflops() * 1e12)
                for rows, x in inputs.items():
                    key = (isa, scheme, rows)
                    best[key] = min(best.get(key, 1e9), model.run(x))
                    work[key] = model.work(rows)
    return best, work, peaks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="instruction sets, with commas; default: all that this processor has")
    parser.add_argument("--schemes", default="w8,w4,bf16")
    parser.add_argument("--rows", default="1,8,32,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    library = load()
    if library is None:
        raise SystemExit("The native kernels are not built: make native")
    args.isa = args.isa.split(",") if args.isa else list(library.features.isas)
    args.schemes, args.rows = args.schemes.split(","), [int(rows) for rows in args.rows.split(",")]
    best, work, peaks = measure(library, args)
    print(
        f"{library.threads} threads; read {peaks['read'] / 1e9:.1f} GB/s, "
        f"int8 {peaks['int8'] / 1e12:.2f} TOP/s, bfloat16 {peaks['bf16'] / 1e12:.2f} TFLOP/s\n"
    )
    titles = f"{'isa':8s} {'scheme':7s} {'rows':>5s} {'ms':>9s} {'tokens/s':>9s}"
    print(f"{titles} {'GB/s':>7s} {'of read':>8s} {'TOP/s':>7s} {'of peak':>8s}")
    rows_out = []
    for (isa, scheme, rows), seconds in best.items():
        read, operations = work[isa, scheme, rows]
        peak = peaks["bf16" if scheme == "bf16" else "int8"]
        line = {
            "isa": isa,
            "scheme": scheme,
            "rows": rows,
            "seconds": seconds,
            "read_share": read / seconds / peaks["read"],
            "peak_share": operations / seconds / peak,
        }
        rows_out.append(line)
        print(
            f"{isa:8s} {scheme:7s} {rows:5d} {seconds * 1e3:9.2f} {rows / seconds:9.1f} {read / seconds / 1e9:7.1f} "
            f"{100 * line['read_share']:7.0f}% {operations / seconds / 1e12:7.2f} {100 * line['peak_share']:7.0f}%"
        )
    if args.json:
        args.json.write_text(
            json.dumps({"threads": library.threads, "limits": peaks, "points": rows_out}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
