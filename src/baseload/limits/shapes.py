"""What the limits model knows of a model: layers by kind, parameters, bytes, FLOPs per token, KV bytes per token.

`shape_config.shape_of` makes a shape from a Hugging Face config.json.
"""

from msgspec import Struct

from baseload.limits.quantization import Quantization


class Mixer(Struct, frozen=True):
    """A group of equal token-mixing layers. Counts are for one layer."""

    kind: str  # "attention" | "mla" | "linear"
    layers: int
    params: int
    pair_flops: int = 0  # FLOPs of one (query, key) pair over all heads, in prefill
    kv_elements: int = 0  # cache entries of one token
    window: int = 0  # keys at most looked at; 0: all
    chunked: bool = False  # the window does not slide: positions see back to the start of their chunk of that length
    top_keys: int = 0  # keys an indexer chooses of all; 0: no indexer
    index_flops: int = 0  # FLOPs of one (query, key) pair in the indexer
    state_elements: int = 0  # of one sequence, whatever its length (linear attention)
    kv_heads: int = 1  # across how many tensor-parallel ranks the cache can be cut

    def keys(self, context: float) -> float:
        """Keys a query attends to that looks back at `context` tokens; in chunks, the mean over positions."""
        if self.chunked and context > self.window:
            return self.window / 2.0
        return min(context, self.window or self.top_keys or context)

    def query_flops(self, context: float) -> float:
        """Attention FLOPs of one layer for a query that looks back at `context` tokens."""
        return self.pair_flops * self.keys(context) + self.index_flops * context

    def sample_flops(self, tokens: float) -> float:
        """Attention FLOPs of one layer over a causal sample of so many tokens."""
        whole = tokens * tokens / 2.0
        if self.chunked and self.window:
            chunks, rest = divmod(tokens, self.window)
            return self.pair_flops * (chunks * self.window**2 + rest**2) / 2.0
        seen = min(self.window or self.top_keys or tokens, tokens)
        return self.pair_flops * (tokens * seen - seen * seen / 2.0) + self.index_flops * whole

    def cached(self, tokens: int) -> int:
        """Tokens of a sequence whose keys are kept."""
        return min(tokens, self.window or tokens)


class Feedforward(Struct, frozen=True):
    """A group of equal feed-forward layers. Counts are for one layer."""

    layers: int
    dense_params: int  # read by every token: dense MLP, shared experts, router
    expert_params: int = 0  # of one routed expert
    experts: int = 0
    top_k: int = 0


class ModelShape(Struct, frozen=True):
    """What the limits model knows of a model."""

    name: str
    layers: int
    hidden: int
    vocab: int
    embedding_params: int
    head_params: int  # read once per decoded token; part of the embedding where tied
    mixers: tuple[Mixer, ...]
    feedforwards: tuple[Feedforward, ...]
    quantization: Quantization
    tied: bool = False
    draft_layers: int = 0  # for multi-token prediction: the model can speculate by itself
    assumed: tuple[str, ...] = ()  # what the configuration left open and how it was read

    @property
    def mixer_params(self) -> int:
        """Parameters of all attention and linear-attention layers."""
        return sum(m.layers * m.params for m in self.mixers)

    @property
    def dense_params(self) -> int:
        """Parameters of feed-forward layers that every token uses (shared experts and routers included)."""
        return sum(f.layers * f.dense_params for f in self.feedforwards)

    @property
    def expert_params(self) -> int:
        """Parameters of all routed experts."""
        return sum(f.layers * f.experts * f.expert_params for f in self.feedforwards)

    @property
    def params(self) -> int:
        """All parameters of the text model."""
        body = self.mixer_params + self.dense_params + self.expert_params
        return body + self.embedding_params + (0 if self.tied else self.head_params)

    @property
    def active_params(self) -> int:
        """Parameters one token uses, embedding and head included, as published counts have it."""
        routed = sum(f.layers * f.top_k * f.expert_params for f in self.feedforwards)
        body = self.mixer_params + self.dense_params + routed
        return body + self.embedding_params + (0 if self.tied else self.head_params)

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return sum(f.layers for f in self.feedforwards if f.experts)

    def weight_bytes(self, quantization: Quantization | None = None) -> float:
        """Bytes of all weights, in the model's own format or another."""
        q = quantization or self.quantization
        ends = (self.embedding_params + (0 if self.tied else self.head_params)) * q.head_bytes
        body = self.mixer_params * q.attention_bytes + self.dense_params * q.dense_bytes
        return ends + body + self.expert_params * q.expert_bytes

    def kv_bytes_per_token(self, element_bytes: float = 2.0) -> float:
        """Cache bytes one more token of context costs, once windows are full (windowed layers add nothing)."""
        return sum(m.layers * m.kv_elements for m in self.mixers if not m.window) * element_bytes

    def kv_bytes(self, tokens: int, element_bytes: float = 2.0) -> float:
        """Cache bytes of one sequence of `tokens` tokens, windows and linear-attention states included."""
        cache = sum(m.layers * m.kv_elements * m.cached(tokens) for m in self.mixers)
        return cache * element_bytes + 4.0 * sum(m.layers * m.state_elements for m in self.mixers)

    def flops_per_token(self, context: int = 0) -> float:
        """FLOPs to process one token that looks back at `context` tokens, head included."""
        routed = sum(f.layers * f.top_k * f.expert_params for f in self.feedforwards)
        weights = self.mixer_params + self.dense_params + routed + self.head_params
        pairs = sum(m.layers * m.query_flops(context) for m in self.mixers)
        return 2.0 * weights + pairs
