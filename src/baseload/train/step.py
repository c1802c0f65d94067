"""One training step, compiled once: loss over packed rows, gradient, AdamW with warm-up and cosine decay."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from baseload.domain.errors import CheckpointError
from baseload.engine.config import ModelConfig
from baseload.engine.registry import forward_full
from baseload.train.config import OptimizerConfig
from baseload.train.data import Batch

Tree = Any  # a pytree of arrays


class State(NamedTuple):
    """What a step changes."""

    params: Tree
    optimizer: Tree


StepFunction = Callable[[State, Batch], tuple[State, jax.Array]]


def make_optimizer(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
    """AdamW; decay falls on matrices only, because shrinking a norm's scale only fights the norm."""
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(config.warmup_steps, 1),
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps, config.warmup_steps + 1),
        end_value=config.learning_rate * config.final_ratio,
    )
    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


@lru_cache(maxsize=4)  # runs of the same model in one process compile once
def make_step(model: ModelConfig, config: OptimizerConfig, *, steps: int) -> StepFunction:
    """A compiled function (state, batch) → (state, mean loss per weighted token). The old state is consumed."""
    optimizer = make_optimizer(config, steps=steps)

    def loss_of(params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        logits = forward_full(model, params, batch["tokens"], segments=batch["segments"], at=batch["at"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(losses * batch["weights"]) / jnp.maximum(jnp.sum(batch["weights"]), 1.0)

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(state.params, batch)
        updates, after = optimizer.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), after), loss

    compiled = jax.jit(step, donate_argnums=0)

    def run(state: State, batch: Batch) -> tuple[State, jax.Array]:
        after: tuple[State, jax.Array] = compiled(state, _learnt_places(batch))
        return after

    return run


def _learnt_places(batch: Batch) -> dict[str, NDArray[np.generic]]:
    """The batch, with targets and weights only where something is learnt: logits are computed for these places alone.

    Their number is rounded up to an eighth of the batch, so that at most eight programs are compiled.
    """
    weights = batch.weights.reshape(-1)
    places = np.flatnonzero(weights)
    eighth = -(-len(weights) // 8)
    at = np.zeros(max(-(-len(places) // eighth), 1) * eighth, np.int32)
    at[: len(places)] = places
    kept = np.where(np.arange(len(at)) < len(places), weights[at], np.float32(0.0))
    targets = batch.targets.reshape(-1)[at]
    return {"tokens": batch.tokens, "segments": batch.segments, "at": at, "targets": targets, "weights": kept}


def to_arrays(state: State) -> dict[str, NDArray[np.generic]]:
    """The state as named host arrays, for a checkpoint."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def from_arrays(arrays: dict[str, NDArray[np.generic]], like: State) -> State:
    """The state saved by `to_arrays`, in the structure of `like`; CheckpointError where they do not fit."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    restored = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        saved = arrays.get(name)
        if saved is None or saved.shape != leaf.shape or saved.dtype != leaf.dtype:
            raise CheckpointError(
                f"The checkpoint's {name} does not fit the configured model.", hint="Start afresh with --fresh."
            )
        restored.append(jnp.array(saved))
    state: State = jax.tree_util.tree_unflatten(structure, restored)
    return state


def _is_matrix(params: Tree) -> Tree:
    """Which leaves decay: all but norms and biases."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = str(getattr(path[-1], "key", ""))
        return not name.endswith(("norm", "bias"))

    return jax.tree_util.tree_map_with_path(decays, params)
