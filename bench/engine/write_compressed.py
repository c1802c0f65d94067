"""Random weights as vLLM's own quantizer (llm-compressor) lays them out.

    python write_compressed.py HF_DIR FOLDER KIND…     in vLLM's environment; each kind becomes FOLDER/KIND, once

KIND is ct-w8a8 (a scale for each row, activations quantized per token) or ct-w4 (symmetric levels of 4 bits, a scale
for each group of 128). Every weight is rounded to the nearest level: the kernels read as many bytes however it was
chosen. The head keeps 16 bits, as that tool's recipes leave it.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 128
ROWS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
GROUPS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False}
KINDS = {
    "ct-w8a8": ("int-quantized", {"weights": ROWS, "input_activations": TOKENS}),
    "ct-w4": ("pack-quantized", {"weights": GROUPS}),
}


def compressed(name: str, weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """The tensors that stand for one matrix [rows, columns]."""
    rows, columns = weight.shape
    bits, width = (8, columns) if kind == "ct-w8a8" else (4, GROUP)
    parts = weight.float().view(rows, columns // width, width)
    most = 2 ** (bits - 1) - 1
    scale = (parts.abs().amax(-1, keepdim=True) / most).clamp_min(1e-30).to(torch.bfloat16)
    levels = (parts / scale.float()).round().clamp(-most - 1, most).to(torch.int8).view(rows, columns)
    found = {f"{name}_scale": scale.view(rows, -1)}
    if bits == 8:
        return found | {name: levels}
    return found | {f"{name}_packed": packed(levels), f"{name}_shape": torch.tensor([rows, columns])}


def packed(levels: torch.Tensor) -> torch.Tensor:
    """Levels from -8 to 7, eight in an int32, the first in the lowest bits, 0 standing for -8."""
    nibbles = (levels.view(len(levels), -1, 8).to(torch.int64) + 8) << torch.arange(0, 32, 4)
    words = nibbles.sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def write(source: Path, target: Path, kind: str) -> None:
    """One directory that vLLM serves."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    if "num_experts" in config:
        raise SystemExit(f"{kind}: experts are not written in this form")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, value in load_file(file).items():
            tensors |= compressed(name, value, kind) if name.endswith("proj.weight") else {name: value}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    layout, group = KINDS[kind]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
    }
    (target / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, target / name)
    (target / "written").touch()


def main() -> None:
    """Write what is not there yet."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)  # spinning threads stand still where others work on the machine
    for kind in sys.argv[3:]:
        if not (folder / kind / "written").exists():
            write(source, folder / kind, kind)


if __name__ == "__main__":
    main()
