"""HF directory → GGUF in float16, and from that llama.cpp's own quantized forms. Runs in llama.cpp's environment.

python write_gguf.py HF_DIR FOLDER q8_0 q4_0 q4_k
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

FILE_TYPES = {"q8_0": 7, "q4_0": 2, "q4_k": 15, "q6_k": 18}  # LLAMA_FTYPE_MOSTLY_…; q4_k: the Q4_K_M mixture
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
ROOT = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(folder):
    """Name and array of each tensor; bfloat16 widened."""
    for path in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(path, np.uint8, "r")
        length = int(raw[:8].view(np.uint64)[0])
        header = json.loads(bytes(raw[8 : 8 + length]))
        for name, about in header.items():
            if name == "__metadata__":
                continue
            first, last = about["data_offsets"]
            part = raw[8 + length + first : 8 + length + last]
            if about["dtype"] == "BF16":
                wide = (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                wide = part.view({"F32": np.float32, "F16": np.float16}[about["dtype"]]).astype(np.float32)
            yield name, wide.reshape(about["shape"])


def rotated(weights, heads):
    """Rows in the order that llama.cpp's rotary embedding of the Llama family wants: pairs side by side."""
    rows = weights.shape[0] // heads
    return weights.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def write_f16(source, target):
    """The GGUF file in float16."""
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    is_moe = "num_experts" in config
    writer = gguf.GGUFWriter(target, "qwen3moe" if is_moe else "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(1)
    if is_moe:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    vocab = tokenizer["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(sorted(vocab, key=vocab.get))
    writer.add_token_types([3 if index == 0 else 1 for index in range(len(vocab))])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    experts = {}
    for name, value in tensors(source):
        stem = name.removesuffix(".weight")
        if stem in ROOT:
            add(writer, ROOT[stem], value)
            continue
        _, _, layer, rest = stem.split(".", 3)
        if rest.startswith("mlp.experts."):
            _, _, expert, kind = rest.split(".")
            experts.setdefault((int(layer), kind), {})[int(expert)] = value.astype(np.float16)
            continue
        if not is_moe and rest in ("self_attn.q_proj", "self_attn.k_proj"):
            value = rotated(value, config["num_attention_heads" if "q_proj" in rest else "num_key_value_heads"])
        add(writer, f"blk.{layer}.{LAYER[rest]}", value)
    for (layer, kind), parts in experts.items():
        stacked = np.stack([parts[index] for index in range(len(parts))])
        writer.add_tensor(f"blk.{layer}.ffn_{kind.removesuffix('_proj')}_exps.weight", stacked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, name, value):
    """Norms and routers stay float32, as llama.cpp's own converter leaves them."""
    is_small = value.ndim == 1 or name.endswith("ffn_gate_inp")
    writer.add_tensor(f"{name}.weight", value.astype(np.float32 if is_small else np.float16))


def quantize(source, target, kind):
    """llama.cpp's quantizer."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code:
        raise SystemExit(f"llama.cpp could not quantize to {kind}: {code}")


def main():
    """Write what is not there yet."""
    source, folder, kinds = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    whole = folder / "f16.gguf"
    if not whole.exists():
        write_f16(source, folder / "part.gguf")
        (folder / "part.gguf").rename(whole)
    for kind in kinds:
        target = folder / f"{kind}.gguf"
        if not target.exists():
            quantize(whole, folder / "part.gguf", kind)
            (folder / "part.gguf").rename(target)


main()
