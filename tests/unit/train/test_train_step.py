"""One step: packing must not let conversations see each other, and decay must spare the norms."""

import jax
import jax.numpy as jnp
import numpy as np

from baseload.engine.config import NO_WINDOW, ModelConfig, RopeConfig
from baseload.engine.registry import forward_full
from baseload.engine.weights import random_params
from baseload.train.config import OptimizerConfig
from baseload.train.data import Batch
from baseload.train.step import State, from_arrays, make_optimizer, make_step, to_arrays

TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=40,
    hidden=16,
    intermediate=24,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    norm_eps=1e-5,
    max_context=32,
    rope=RopeConfig(),
    windows=(NO_WINDOW,) * 2,
    is_moe=(False,) * 2,
    tied=True,
)


def _params() -> dict[str, object]:
    tree: dict[str, object] = jax.tree.map(jnp.array, random_params(TINY, 3, scale=0.3))
    return tree


def test_pieces_of_a_packed_row_do_not_see_each_other() -> None:
    first, second = np.arange(5), np.arange(20, 27)
    row = np.concatenate([first, second])[None]
    segments = np.array([[1] * 5 + [2] * 7])
    packed = forward_full(TINY, _params(), jnp.array(row), segments=jnp.array(segments))
    alone = [forward_full(TINY, _params(), jnp.array(one[None]))[0] for one in (first, second)]
    np.testing.assert_allclose(packed[0], jnp.concatenate(alone), atol=1e-5)
    leaking = forward_full(TINY, _params(), jnp.array(row))
    assert float(jnp.abs(leaking[0, 5:] - alone[1]).max()) > 1e-2


def test_norms_do_not_decay_and_padding_teaches_nothing() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    params = _params()
    before = jax.device_get(params)
    zeros = np.zeros((1, 8), np.int32)
    batch = Batch(tokens=zeros, targets=zeros, weights=np.zeros((1, 8), np.float32), segments=zeros, positions=zeros)
    state = State(params, make_optimizer(config, steps=10).init(params))
    after, loss = make_step(TINY, config, steps=10)(state, batch)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(after.params["final_norm"], before["final_norm"])
    np.testing.assert_array_equal(after.params["attn"]["norm"], before["attn"]["norm"])
    np.testing.assert_allclose(after.params["embed"], before["embed"] * 0.95, rtol=1e-5)


def test_a_state_survives_being_named_arrays() -> None:
    params = _params()
    state = State(params, make_optimizer(OptimizerConfig(), steps=10).init(params))
    again = from_arrays(to_arrays(state), state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
