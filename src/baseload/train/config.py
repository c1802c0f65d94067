"""What to train: a TOML file parsed once into one frozen tree. Unknown keys are refused, naming the nearest known."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from baseload.domain.errors import SettingsError
from baseload.wire.toml import parse_toml

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0)]


class SourceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One source of training examples. Sources are mixed by `weight`.

    kind: "text" (plain files, one document each), "jsonl" (a `text` or a `messages` field per line; with messages
    only the assistant's words are learnt) or "guide" (question-and-answer Markdown, see docs/guide/README.md).
    """

    kind: Literal["text", "jsonl", "guide"]
    path: str  # a file, a directory or a glob, relative to the configuration file
    weight: Amount = 1.0


class ModelShape(Struct, frozen=True, forbid_unknown_fields=True):
    """A new model of the Llama architecture. Ignored when `init_from` names a model to go on from."""

    hidden_size: Positive = 256
    intermediate_size: Positive = 704
    layers: Positive = 6
    heads: Positive = 4
    kv_heads: Positive = 2
    max_context: Positive = 1024
    rope_theta: Amount = 10_000.0
    tie_embeddings: bool = True


class TokenizerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A byte-level BPE tokenizer trained on the sources. Ignored when `init_from` names a model to go on from."""

    vocab_size: Annotated[int, Meta(ge=264)] = 3072
    lowercase_user: bool = False  # the chat template lower-cases what the user says
    last_question_only: bool = False  # the written chat template shows the model the last question alone


class OptimizerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """AdamW (Loshchilov and Hutter, 2019) with linear warm-up and cosine decay to `final_ratio` of the peak."""

    learning_rate: Amount = 1e-3
    warmup_steps: NonNegative = 50
    final_ratio: Fraction = 0.05
    beta1: Fraction = 0.9
    beta2: Fraction = 0.98
    epsilon: Amount = 1e-8
    weight_decay: Amount = 0.1  # on matrices only, never on norms
    clip_norm: Amount = 1.0  # of the whole gradient; 0: no clipping


class TrainConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about one training run. Paths are absolute once loaded by `load`."""

    output_dir: str  # the Hugging Face directory written at the end
    checkpoint_dir: str
    sources: tuple[SourceConfig, ...]
    steps: Positive
    model: ModelShape = ModelShape()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    init_from: str = ""  # a Hugging Face directory to go on from, with its tokenizer; "": a new model
    seed: NonNegative = 0
    batch_rows: Positive = 8  # rows packed with whole conversations or running text
    row_tokens: Annotated[int, Meta(ge=8)] = 256
    prompt_loss_weight: Fraction = 0.0  # weight of tokens that are not the assistant's; 0: answers only
    checkpoint_every: Positive = 200
    keep_checkpoints: Positive = 2
    log_every: Positive = 20
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the written weights; training is in float32


def load(path: Path) -> TrainConfig:
    """Read a TOML file; SettingsError names the file, the key and what to do."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SettingsError(f"There is no training configuration at {path}.", hint="Check the path.") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}.") from None
    config = parse_toml(data, TrainConfig, name=str(path), hint="docs/training.md lists every key.")
    _check(config, path)
    base = path.resolve().parent
    return msgspec.structs.replace(
        config,
        output_dir=_absolute(base, config.output_dir),
        checkpoint_dir=_absolute(base, config.checkpoint_dir),
        init_from=_absolute(base, config.init_from) if config.init_from else "",
        sources=tuple(msgspec.structs.replace(s, path=_absolute(base, s.path)) for s in config.sources),
    )


def _absolute(base: Path, path: str) -> str:
    return str((base / Path(path).expanduser()).resolve())


def _check(config: TrainConfig, path: Path) -> None:
    """What types alone cannot say."""
    problems = []
    if not any(source.weight > 0 for source in config.sources):
        problems.append(("`sources` needs at least one source with a weight above 0", "Add a [[sources]] table"))
    shape = config.model
    if not config.init_from and shape.hidden_size % (2 * shape.heads):
        problems.append(("`model.hidden_size` must be an even multiple of `model.heads`", "Change one of them"))
    if not config.init_from and shape.heads % shape.kv_heads:
        problems.append(("`model.heads` must be a multiple of `model.kv_heads`", "Change one of them"))
    for what, hint in problems:
        raise SettingsError(f"{path}: {what}.", hint=f"{hint}.")
