"""The shapes of the GPU bench: Llama 3.1 8B, and a tiny one that its engine part is tested with on a CPU."""

from baseload.engine.config import NO_WINDOW, ModelConfig, RopeConfig


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int
) -> ModelConfig:
    """A Llama of these sizes."""
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
        max_context=4096,
        rope=RopeConfig(theta=500_000.0),
        windows=(NO_WINDOW,) * layers,
        is_moe=(False,) * layers,
    )


SHAPES = {"8b": llama(4096, 14336, 32, 32, 8, 128, 128256), "tiny": llama(64, 128, 2, 4, 2, 16, 256)}
