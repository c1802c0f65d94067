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

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))  # of ours, this environment can import no more than this
from baseload.engine.gguf.names import is_turned, name_of, pairs

FILE_TYPES = {"q8_0": 7, "q4_0": 2, "q4_k": 15, "q6_k": 18}  # LLAMA_FTYPE_MOSTLY_…; q4_k: the Q4_K_M mixture


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
        target_name, expert = name_of(name)
        if expert is not None:
            experts.setdefault(target_name, {})[expert] = value.astype(np.float16)
            continue
        if is_turned("qwen3moe" if is_moe else "llama", target_name):
            value = pairs(value, config["num_attention_heads" if "attn_q" in target_name else "num_key_value_heads"])
        add(writer, target_name, value)
    for name, parts in experts.items():
        writer.add_tensor(name, np.stack([parts[index] for index in range(len(parts))]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, name, value):
    """Norms and routers stay float32, as llama.cpp's own converter leaves them."""
    is_small = value.ndim == 1 or "ffn_gate_inp" in name
    writer.add_tensor(name, value.astype(np.float32 if is_small else np.float16))


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
