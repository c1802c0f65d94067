"""What both runners, on XLA and on the native kernels, answer about their model and its cache."""

from baseload.engine.config import ModelConfig


class OpenedModel:
    """A model opened for serving: how large it and its paged cache are."""

    def __init__(self, config: ModelConfig, *, block_tokens: int, blocks: int, max_context: int) -> None:
        self.config = config
        self._block_tokens = block_tokens
        self._blocks = blocks
        self._max_context = max_context

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.config.vocab_size

    @property
    def block_tokens(self) -> int:
        """Tokens per cache block."""
        return self._block_tokens

    @property
    def num_blocks(self) -> int:
        """Blocks in the cache, numbered from 0."""
        return self._blocks

    @property
    def max_context(self) -> int:
        """Longest sequence, prompt and answer together."""
        return self._max_context

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, from config.json and generation_config.json."""
        return self.config.eos_token_ids
