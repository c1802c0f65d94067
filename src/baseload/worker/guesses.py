"""Opening what a worker computes with: the model, and the draft model beside it where the settings name one.

A draft model shares the worker's bound on its KV cache: both caches together take no more than `kv_cache_bytes` (or
what is chosen in its place), and hold the same number of tokens.
"""

from pathlib import Path

import msgspec

from baseload.domain.errors import BaseloadError, ModelError
from baseload.domain.model import EngineSpec
from baseload.engine.config import ModelConfig
from baseload.engine.draft_model import DraftModel
from baseload.engine.guessing import GuessSource, PromptLookups
from baseload.engine.kv_cache import block_bytes, default_cache_bytes
from baseload.engine.packed import is_packed
from baseload.engine.registry import read_config
from baseload.engine.runner import open_runner
from baseload.engine.spans import ModelRunner
from baseload.engine.tokenizer import TextTokenizer
from baseload.engine.weights import resolve_dtype

DRAFT_STEP_TOKENS = 512
_TO_DO = 'Set engine.guess to the folder of a smaller model with the same tokenizer, to "prompt" or to "off".'


def open_model(
    model_dir: Path, *, spec: EngineSpec, cache_dir: Path | None
) -> tuple[ModelRunner, GuessSource | None]:
    """The model's runner, and what guesses its tokens ahead. Raises ModelError where either cannot be served."""
    if not spec.draft:
        looks_up = spec.guess == "prompt" and spec.guess_tokens
        return open_runner(model_dir, spec=spec, cache_dir=cache_dir), PromptLookups() if looks_up else None
    draft_dir = Path(spec.draft)
    own, drafts = _specs(model_dir, draft_dir, spec)
    runner = open_runner(model_dir, spec=own, cache_dir=cache_dir)
    return runner, _open_draft(draft_dir, drafts, model_dir, runner, cache_dir)


def _open_draft(
    draft_dir: Path, spec: EngineSpec, model_dir: Path, runner: ModelRunner, cache_dir: Path | None
) -> GuessSource:
    try:
        draft = open_runner(draft_dir, spec=spec, cache_dir=cache_dir)
    except BaseloadError as error:
        raise unfit(error) from error
    if draft.vocab_size != runner.vocab_size:  # a family pads its sizes differently: its tokens decide
        check_tokens(draft_dir, model_dir)
    draft.warm()
    return DraftModel(draft, most_tokens=spec.max_step_tokens, vocab_size=min(draft.vocab_size, runner.vocab_size))


def check_tokens(draft_dir: Path, model_dir: Path) -> None:
    """Raises ModelError unless both folders' tokenizers have the same tokens."""
    drafts, own = (TextTokenizer.open(folder).tokens() for folder in (draft_dir, model_dir))
    if drafts != own:
        differing = sum(own.get(text) != number for text, number in drafts.items())
        raise ModelError(
            f"The draft model {draft_dir} has another vocabulary than {model_dir}: {len(drafts)} tokens against"
            f" {len(own)}, {differing} of them with other numbers.",
            hint=_TO_DO,
        )


def _specs(model_dir: Path, draft_dir: Path, spec: EngineSpec) -> tuple[EngineSpec, EngineSpec]:
    """How the model and its draft are opened: the memory for the cache shared by what a token takes in each."""
    config, dtype = _about(model_dir, spec)
    try:
        drafts, draft_dtype = _about(draft_dir, spec)
    except BaseloadError as error:
        raise unfit(error) from error
    size = spec.block_tokens
    per_block = block_bytes(config, size, dtype), block_bytes(drafts, size, draft_dtype)
    context = min(spec.max_context or config.max_context, config.max_context)
    blocks = (spec.kv_cache_bytes or default_cache_bytes()) // sum(per_block)
    if not spec.kv_cache_bytes:
        blocks = min(blocks, spec.max_seqs * -(-context // size))
    room, draft_room = (max(1, blocks * one) for one in per_block)
    own = msgspec.structs.replace(spec, kv_cache_bytes=room)
    return own, msgspec.structs.replace(
        spec,
        kv_cache_bytes=draft_room,
        kv_dtype="auto",
        max_context=min(context, drafts.max_context),
        max_step_tokens=min(DRAFT_STEP_TOKENS, spec.max_step_tokens),
    )


def _about(folder: Path, spec: EngineSpec) -> tuple[ModelConfig, str]:
    """A model's configuration and the type its cache is kept in (8 bits count as 16: the bound holds)."""
    config = read_config(folder)
    return config, "bfloat16" if is_packed(folder) else resolve_dtype(config, spec.dtype)


def unfit(error: BaseloadError) -> ModelError:
    """The error of a draft model, named as one."""
    return ModelError(f"The draft model (engine.guess) cannot be used: {error.message}", hint=_TO_DO)
