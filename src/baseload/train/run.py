"""A training run: data → step → checkpoint, resumable to the identical next step, then a Hugging Face directory."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from msgspec import Struct
from tokenizers import Tokenizer

from baseload.domain.errors import CheckpointError, DataError
from baseload.engine.config import NO_WINDOW, ModelConfig, RopeConfig
from baseload.engine.weights import load_params, random_params, save_params
from baseload.train import checkpoint
from baseload.train.config import TrainConfig
from baseload.train.data import Position, Source, Stream
from baseload.train.progress import Reporter
from baseload.train.sources import open_source
from baseload.train.step import State, from_arrays, make_optimizer, make_step, to_arrays
from baseload.train.tokens import (
    BOS,
    END,
    ChatEncoder,
    chat_template,
    open_encoder,
    train_tokenizer,
    write_tokenizer,
)


class TrainResult(Struct, frozen=True):
    """What came of a run. `stopped` when a signal ended it early; it goes on from its checkpoint next time."""

    step: int
    loss: float  # of the last step done; NaN when none was
    tokens: int  # trained on in this run, padding not counted
    seconds: float  # of this run, compilation included
    tokens_per_s: float  # compilation not included
    stopped: bool
    output_dir: str  # "" when stopped


# The parts of a configuration that must not change between a checkpoint and the run that goes on from it.
_FIXED = ("sources", "model", "tokenizer", "init_from", "seed", "batch_rows", "row_tokens", "prompt_loss_weight")


def train(config: TrainConfig, *, progress: bool, fresh: bool = False) -> TrainResult:
    """Train to `config.steps`, from the newest whole checkpoint if there is one and `fresh` is False.

    SIGINT and SIGTERM end it after the running step, with a checkpoint. Raises DataError, CheckpointError and
    ModelError.
    """
    began = time.monotonic()
    directory = Path(config.checkpoint_dir)
    if fresh:
        checkpoint.clear(directory)
    messages: list[str] = []
    saved = checkpoint.read_newest(directory, say=messages.append)
    if saved is not None:
        _refuse_changes(config, saved.state)
        messages.append(f"Going on from step {saved.step}.")
    run = _Run(config, saved)
    with Reporter(first_step=run.step, steps=config.steps, progress=progress) as reporter, _interrupts() as asked:
        for message in messages:
            reporter.say(message)
        reporter.say(
            f"{run.model.parameters / 1e6:.2f} M parameters, {run.model.vocab_size} tokens in the vocabulary"
        )
        run.advance(reporter, asked)
        if run.step < config.steps:
            reporter.say(f"Stopped at step {run.step}; the checkpoint is in {directory}.")
        else:
            run.write_model(Path(config.output_dir))
            reporter.say(f"Wrote {config.output_dir}")
        return TrainResult(
            step=run.step,
            loss=run.loss,
            tokens=run.tokens,
            seconds=time.monotonic() - began,
            tokens_per_s=reporter.tokens_per_s,
            stopped=run.step < config.steps,
            output_dir=config.output_dir if run.step >= config.steps else "",
        )


class _Run:
    """The moving parts of one run."""

    def __init__(self, config: TrainConfig, saved: checkpoint.Checkpoint | None) -> None:
        self._config = config
        sources = [(open_source(source), source.weight) for source in config.sources]
        self._tokenizer, encoder = _tokenizer(config, [source for source, _ in sources], saved)
        self.model, params = _model(config, self._tokenizer)
        optimizer = make_optimizer(config.optimizer, steps=config.steps)
        self._state = State(params, optimizer.init(params))
        self._step = make_step(self.model, config.optimizer, steps=config.steps)
        self._stream = Stream(
            sources, encoder=encoder, seed=config.seed, batch_rows=config.batch_rows, row_tokens=config.row_tokens
        )
        self.step, self.tokens, self.loss = 0, 0, float("nan")
        if saved is not None:
            self.step = saved.step
            self._state = from_arrays(saved.arrays, self._state)
            self._stream.seek(msgspec.convert(saved.state["position"], Position))

    def advance(self, reporter: Reporter, asked: threading.Event) -> None:
        """Step until done or asked to stop, with a checkpoint now and then and at the end."""
        config, first, saved_at = self._config, self.step, self.step
        loss: jax.Array | None = None
        while self.step < config.steps and not asked.is_set():
            batch = self._stream.next_batch()
            self._state, loss = self._step(self._state, batch)
            self.step += 1
            count = int(np.count_nonzero(batch.segments))
            self.tokens += count
            shows = self.step % config.log_every == 0 or self.step in (first + 1, config.steps)
            if shows:  # waits for the step; the others run while the next batch is packed
                self.loss = _finite(float(loss), self.step)
            reporter.stepped(self.step, count)
            if shows:
                reporter.measured(self.loss)
            if self.step % config.checkpoint_every == 0:
                self._save()
                saved_at = self.step
        if loss is not None:
            self.loss = _finite(float(loss), self.step)
        if self.step != saved_at:
            self._save()

    def write_model(self, directory: Path) -> None:
        """Write the Hugging Face directory: weights, configurations and tokenizer."""
        config = self._config
        save_params(directory, self.model, jax.device_get(self._state.params), dtype=config.dtype)
        generation = {
            "bos_token_id": self.model.bos_token_id,
            "eos_token_id": list(self.model.eos_token_ids),
            "do_sample": False,
        }
        (directory / "generation_config.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(generation), indent=2) + b"\n"
        )
        if config.init_from:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (directory / name).write_bytes((Path(config.init_from) / name).read_bytes())
            return
        template = chat_template(
            lowercase_user=config.tokenizer.lowercase_user, last_question_only=config.tokenizer.last_question_only
        )
        write_tokenizer(directory, self._tokenizer, template=template, max_context=self.model.max_context)

    def _save(self) -> None:
        state = {
            "config": msgspec.to_builtins(self._config),
            "position": msgspec.to_builtins(self._stream.position),
            "tokenizer": self._tokenizer.to_str(),
        }
        checkpoint.write(
            Path(self._config.checkpoint_dir),
            step=self.step,
            arrays=to_arrays(self._state),
            state=state,
            keep=self._config.keep_checkpoints,
        )


def _tokenizer(
    config: TrainConfig, sources: list[Source], saved: checkpoint.Checkpoint | None
) -> tuple[Tokenizer, ChatEncoder]:
    """The tokenizer of `init_from`, of the checkpoint, or a new one trained on the sources."""
    if config.init_from:
        return open_encoder(Path(config.init_from), prompt_weight=config.prompt_loss_weight)
    if saved is not None:
        tokenizer = Tokenizer.from_str(str(saved.state["tokenizer"]))
    else:
        texts = (text for source in sources for text in source.texts())
        special = [token for source in sources for token in source.special_tokens()]
        tokenizer = train_tokenizer(texts, vocab_size=config.tokenizer.vocab_size, special=special)
    template = chat_template(lowercase_user=config.tokenizer.lowercase_user)
    return tokenizer, ChatEncoder(
        tokenizer, template=template, bos=BOS, eos=END, prompt_weight=config.prompt_loss_weight
    )


def _model(config: TrainConfig, tokenizer: Tokenizer) -> tuple[ModelConfig, dict[str, object]]:
    """The model to go on from, or a new Llama; weights in float32 on the device."""
    if config.init_from:
        model, host = load_params(config.init_from, dtype="float32")
    else:
        shape = config.model
        special = tokenizer.get_vocab(with_added_tokens=True)
        model = ModelConfig(
            architecture="LlamaForCausalLM",
            vocab_size=tokenizer.get_vocab_size(),
            hidden=shape.hidden_size,
            intermediate=shape.intermediate_size,
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.hidden_size // shape.heads,
            norm_eps=1e-5,
            max_context=shape.max_context,
            rope=RopeConfig(theta=shape.rope_theta),
            windows=(NO_WINDOW,) * shape.layers,
            is_moe=(False,) * shape.layers,
            tied=shape.tie_embeddings,
            bos_token_id=special[BOS],
            eos_token_ids=(special[END],),
        )
        host = random_params(model, config.seed)
    return model, jax.tree.map(jnp.array, host)


def _refuse_changes(config: TrainConfig, state: Mapping[str, object]) -> None:
    """A checkpoint goes on only with the data and the model it was begun with."""
    before = state.get("config")
    now = msgspec.to_builtins(config)
    for name in _FIXED:
        if not isinstance(before, dict) or msgspec.json.encode(before.get(name)) != msgspec.json.encode(now[name]):
            raise CheckpointError(
                f"The checkpoint in {config.checkpoint_dir} was begun with another `{name}`.",
                hint="Start afresh with --fresh, or name another `checkpoint_dir`.",
            )


def _finite(loss: float, step: int) -> float:
    if not np.isfinite(loss):
        raise DataError(
            f"The loss is {loss} at step {step}.",
            hint="Lower `optimizer.learning_rate` or set `optimizer.clip_norm`.",
        )
    return loss


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event set by SIGINT or SIGTERM. Outside the main thread Python has no signals, and it is never set."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
