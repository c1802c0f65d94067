"""Attention's kernels alone, without XLA, beside what the arithmetic units give: processor time of one thread.

    .venv/bin/python bench/engine/attention.py [--isa avx512,avx2] [--heads 16] [--kv-heads 8] [--dim 64] [--json OUT]

Rows new at the end of a context, in bfloat16 and 8 bits; the best of several rounds, instruction sets in turn. The
peak is that of bfloat16 products on registers (on AVX2, which has none: of float32).
"""

import argparse
import ctypes
import json
from pathlib import Path

from baseload.engine.native import library
from baseload.engine.native.matmul import ISAS
from baseload.engine.native.packing import SCHEMES

POINTS = (
    (1, 512, 0),
    (1, 512, 512),
    (1, 512, 1536),
    (1, 1, 1024),
    (32, 1, 128),
    (32, 1, 600),
)  # sequences, rows, from
ROUNDS = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=",".join(isa for isa in library.features().isas if isa != "avxvnni"))
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = library.load()
    assert found is not None, "build the kernels first"
    found.set_threads(1)
    speed, peak = found.c.bl_attention_speed, found.c.bl_peak_speed
    speed.restype = peak.restype = ctypes.c_double
    speed.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, ctypes.c_int32, *[ctypes.c_int64] * 4]
    peak.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_int64]
    isas = args.isa.split(",")
    most = {isa: 2 * max(peak(ISAS[isa], SCHEMES.index("bf16"), 20_000) for _ in range(3)) for isa in isas}
    result = {"peaks_flop_per_s": most, "seconds": {}}
    for int8 in (0, 1):
        for sequences, rows, start in POINTS:
            best = dict.fromkeys(isas, float("inf"))
            for _ in range(ROUNDS):
                for isa in isas:
                    shape = (args.heads, args.kv_heads, args.dim, int8, sequences, rows, start)
                    best[isa] = min(best[isa], speed(isa.encode(), *shape, 3 if rows > 1 else 20))
            flop = 4 * args.heads * args.dim * sequences * sum(start + row + 1 for row in range(rows))
            name = f"{'int8' if int8 else 'bf16'} {sequences}x{rows} from {start}"
            result["seconds"][name] = best
            told = [
                f"{isa} {s * 1e3:7.3f} ms {flop / s / 1e9:4.0f} GFLOP/s = {flop / s / most[isa]:4.0%}"
                for isa, s in best.items()
            ]
            print(f"{name:20s} {'   '.join(told)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
