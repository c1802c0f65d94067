"""Random weights into our packed form, each rounded to the nearest: `python pack_plainly.py HF_DIR SCHEME OUT`.

`baseload quantize` fits the rounding to what the model sees; random weights see nothing, and the kernels read as many
bytes however they were chosen. The transform before `down` is the one `quantize` makes, so that its cost is paid.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from baseload.engine.config import read_json
from baseload.engine.packed import COPIED, write_packed
from baseload.engine.quantize.levels import Levels, Rounded, Value, choose_w4
from baseload.engine.quantize.pack import PLAIN, packed_tensors
from baseload.engine.quantize.schemes import Scheme
from baseload.engine.quantize.source import ModelSource, open_source
from baseload.engine.quantize.transforms import down_block, hadamard


def nearest(weight: np.ndarray, scheme: Scheme, name: str) -> Rounded:
    """A matrix in the scheme's levels; the head keeps 8 bits."""
    if scheme.name == "w4a8" and name != "lm_head":
        levels = choose_w4(weight, np.ones(weight.shape[1], np.float32), scheme.group)
    else:
        one = np.ones((len(weight), 1), np.int16)
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-30).astype(np.float32) / np.float32(127)
        levels = Levels(scale, one, one * 0, one * -127, one * 127, weight.shape[1], "w8")
    return Rounded(levels, levels.nearest(weight))


def rounded(source: ModelSource, scheme: Scheme, block: int) -> Iterator[tuple[str, Value]]:
    """Every tensor under its packed name."""
    top = source.top()
    yield "embed", top["embed"]
    for index in range(source.config.layers):
        for name, value in source.layer(index).items():
            full = f"layers.{index}.{name}"
            if name.endswith(PLAIN):
                yield full, value
                continue
            turned = hadamard(value, block) if name.endswith("down") else value
            if name.startswith("experts."):
                yield full, [nearest(one, scheme, name) for one in turned]
            else:
                yield full, nearest(turned, scheme, name)
    yield "final_norm", top["final_norm"]
    yield "lm_head", nearest(top["lm_head"], scheme, "lm_head")


def main() -> None:
    """Write the directory."""
    folder, scheme, out = Path(sys.argv[1]), Scheme.parse(sys.argv[2]), Path(sys.argv[3])
    source = open_source(folder)
    block = down_block(source.config)
    write_packed(
        out,
        read_json(folder / "config.json"),
        packed_tensors(source.config, rounded(source, scheme, block)),
        scheme=scheme.name,
        group=scheme.group,
        down_hadamard=block,
        files=[folder / name for name in COPIED if (folder / name).is_file()],
    )


if __name__ == "__main__":
    main()
