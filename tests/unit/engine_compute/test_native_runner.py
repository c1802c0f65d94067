"""The native runner: goldens in every scheme, the same bits in any batch, one program, and what is opened for it."""

import json
import shutil
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baseload.domain.model import EngineSpec
from baseload.engine.config import read_json
from baseload.engine.native import library
from baseload.engine.native.calls import StepSize, plan_calls
from baseload.engine.native.packing import interleave_gate_up, pack_bf16, quantize_w4, quantize_w8
from baseload.engine.native.runner import NativeRunner
from baseload.engine.packed import open_packed, write_packed
from baseload.engine.quantize.source import open_source
from baseload.engine.quantize.transforms import hadamard
from baseload.engine.registry import forward_full
from baseload.engine.runner import Runner, open_runner
from baseload.engine.spans import Span
from baseload.engine.weights import layer_pieces, tree_shapes

BUILT = library.load() is not None
FAMILIES = (
    "llama-bias",
    "llama2-tied",
    "llama3-sharded",
    "mistral-window",
    "mixtral",
    "qwen2-window",
    "qwen2-yarn",
    "qwen3",
    "qwen3-moe",
)
PACK = {
    "bf16": pack_bf16,
    "w8a8": quantize_w8,
    "w4a8": lambda weight: quantize_w4(weight, 32),
}
# Root mean square of the logits' error, relative to theirs. Of bfloat16 against transformers' float32 logits; of the
# quantized ones against float32 with the very weights that were packed, so it is the rounding of activations.
TOLERANCE = {"bf16": 0.035, "w8a8": 0.07, "w4a8": 0.07}
SPEC = EngineSpec(kv_cache_bytes=1 << 20, max_seqs=8, max_step_tokens=64, max_context=256)

native = pytest.mark.skipif(not BUILT, reason="the kernels were not built")


@pytest.fixture(scope="session")
def packed_of(goldens, tmp_path_factory):
    """packed_of(family, scheme, block=0): a packed directory of a golden model, rounded to nearest."""
    made = {}

    def get(family, scheme, block=0):
        if (family, scheme, block) not in made:
            out = tmp_path_factory.mktemp("packed") / f"{family}-{scheme}"
            tensors = packed_tensors(open_source(goldens / family), PACK[scheme], block)
            raw = read_json(goldens / family / "config.json")
            group = 32 if scheme == "w4a8" else 0
            write_packed(out, raw, tensors, scheme=scheme, group=group, down_hadamard=block)
            made[family, scheme, block] = out
        return made[family, scheme, block]

    return get


def packed_tensors(source, pack, block):
    def one(name, value):
        if name.endswith("gate_up"):
            value = interleave_gate_up(value, len(value) // 2)
        return pack(hadamard(value, block) if name.endswith("down") else value)

    top = source.top()
    yield "embed", top["embed"].astype(jnp.bfloat16)
    yield "final_norm", top["final_norm"]
    yield "lm_head", pack(top["lm_head"])
    for index in range(source.config.layers):
        for name, value in source.layer(index).items():
            if name.startswith("experts."):
                value = [one(name, expert) for expert in value]
            elif name.endswith("gate_up_bias"):
                value = interleave_gate_up(value, len(value) // 2)
            elif not name.endswith(("norm", "bias", "router")):
                value = one(name, value)
            yield f"layers.{index}.{name}", value


def restored_logits(directory, tokens):
    """Logits float32[n, vocab] in float32 with the weights that lie in a packed directory."""
    model = open_packed(directory)
    config = model.config
    tree = {
        key: {name: np.zeros(shape, np.float32) for name, shape in value.items()} if isinstance(value, dict) else None
        for key, value in tree_shapes(config).items()
    }
    tree |= model.top()
    for index in range(config.layers):
        layer = model.layer(index)
        for group, leaf, at in {(p.group, p.leaf, p.index[0]) for p in layer_pieces(config, index)}:
            experts = group == "moe" and leaf in ("gate_up", "down")
            own = {"attn": "attn_norm"}.get(group, "feed_norm") if leaf == "norm" else leaf
            value = layer[f"experts.{leaf}" if experts else own]
            tree[group][leaf][at] = hadamard(value, model.down_hadamard) if leaf == "down" else value
    if config.tied:
        # The head is packed, the embedding is not: two matrices in what is compared with.
        config = type(config)(**{**{f: getattr(config, f) for f in config.__slots__}, "tied": False})
    return np.asarray(jax.jit(lambda tree, tokens: forward_full(config, tree, tokens))(tree, tokens[None])[0])


def runner_on(directory, *, isa=None, **changes):
    model = open_packed(directory)
    fields = {name: getattr(SPEC, name) for name in SPEC.__struct_fields__} | changes
    return NativeRunner(
        model.config,
        model.weights,
        spec=EngineSpec(**fields),
        isa=isa or library.isa_for("auto"),
        hadamard=model.down_hadamard,
    )


def golden(goldens, family):
    with np.load(goldens / family / "logits.npz") as arrays:
        return [(arrays[f"tokens{index}"], arrays[f"logits{index}"]) for index in range(3)]


def error(found, expected):
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


def tables(count, each=4):
    return [np.arange(index * each, (index + 1) * each, dtype=np.int32)[::-1].copy() for index in range(count)]


def whole(runner, tokens, table):
    return np.asarray(runner.run([Span(tokens, 0, table, True, len(tokens))])).copy()


def in_pieces(runner, sequences, blocks, rng):
    """All logits of all sequences, computed together in steps of random sizes."""
    at, found = [0] * len(sequences), [[] for _ in sequences]
    while any(done < len(tokens) for done, tokens in zip(at, sequences, strict=True)):
        live = [int(i) for i in rng.permutation(len(sequences)) if at[i] < len(sequences[i])]
        take = [min(int(rng.choice([1, 1, 3, 9])), len(sequences[i]) - at[i]) for i in live]
        spans = [
            Span(sequences[i][at[i] : at[i] + n], at[i], blocks[i], True, n) for i, n in zip(live, take, strict=True)
        ]
        rows = np.split(np.asarray(runner.run(spans)).copy(), np.cumsum(take)[:-1])
        for i, n, out in zip(live, take, rows, strict=True):
            found[i].append(out)
            at[i] += n
    return [np.concatenate(parts) for parts in found]


@native
@pytest.mark.parametrize(
    ("family", "scheme"),
    [(family, scheme) for family in FAMILIES for scheme in ("bf16", "w8a8")]
    + [(family, "w4a8") for family in ("llama-bias", "qwen3-moe")],
)
def test_goldens_hold_and_prompts_equal_pieces_bit_by_bit(goldens, packed_of, family, scheme):
    directory = packed_of(family, scheme)
    cases = golden(goldens, family)
    blocks = tables(len(cases))
    runner = runner_on(directory)
    found = [whole(runner, tokens, table) for (tokens, _), table in zip(cases, blocks, strict=True)]
    if scheme == "bf16":
        for (_, logits), rows in zip(cases, found, strict=True):
            assert error(rows, logits) < TOLERANCE[scheme]
    else:
        assert error(found[0], restored_logits(directory, cases[0][0])) < TOLERANCE[scheme]
    pieces = in_pieces(runner_on(directory), [tokens for tokens, _ in cases], blocks, np.random.default_rng(0))
    for rows, again in zip(found, pieces, strict=True):
        assert np.array_equal(rows, again)


@native
@pytest.mark.parametrize("isa", [*library.features().isas, "portable", "xla"])
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_every_instruction_set_and_the_twin_agree(goldens, packed_of, family, isa):
    directory = packed_of(family, "w8a8")
    tokens, _ = golden(goldens, family)[0]
    rows = whole(runner_on(directory, isa=isa), tokens, tables(1)[0])
    assert error(rows, restored_logits(directory, tokens)) < TOLERANCE["w8a8"]


@native
def test_a_turned_down_projection_gives_what_the_straight_one_does(goldens, packed_of):
    raw = read_json(goldens / "llama3-sharded" / "config.json")
    assert raw["intermediate_size"] % 16 == 0
    straight, turned = (packed_of("llama3-sharded", "w8a8", block) for block in (0, 16))
    tokens, _ = golden(goldens, "llama3-sharded")[0]
    for isa in (library.isa_for("auto"), "xla"):
        found = whole(runner_on(turned, isa=isa), tokens, tables(1)[0])
        assert error(found, restored_logits(straight, tokens)) < TOLERANCE["w8a8"]


@native
@pytest.mark.parametrize("isa", [library.isa_for("auto"), "xla"])
def test_keys_and_values_in_8_bits(goldens, packed_of, isa):
    directory = packed_of("qwen3", "bf16")
    tokens, logits = golden(goldens, "qwen3")[0]
    small, large = runner_on(directory, isa=isa, kv_dtype="int8"), runner_on(directory, isa=isa)
    assert error(whole(small, tokens, tables(1)[0]), logits) < 0.05
    assert small.num_blocks > 1.4 * large.num_blocks


@native
def test_a_step_larger_than_the_program_takes_several_calls(packed_of):
    directory = packed_of("llama3-sharded", "w8a8")
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 97, 50).astype(np.int32) for _ in range(6)]
    blocks = tables(6)
    spans = [Span(x, 0, table, True) for x, table in zip(sequences, blocks, strict=True)]
    large, small = runner_on(directory, max_step_tokens=512), runner_on(directory, max_step_tokens=16, max_seqs=2)
    assert np.array_equal(np.asarray(large.run(spans)), np.asarray(small.run(spans)))


def test_calls_hold_what_fits():
    size = StepSize(rows=10, spans=3, picks=4, table_blocks=4)
    table = np.zeros(4, np.int32)

    def span(count, wanted=0):
        return Span(np.zeros(count, np.int32), 0, table, wanted > 0, max(1, wanted))

    rng = np.random.default_rng(2)
    for _ in range(200):
        spans = [span(n, int(rng.integers(0, n + 1))) for n in rng.integers(1, 25, int(rng.integers(1, 8)))]
        done, wanted = [0] * len(spans), [0] * len(spans)
        for call in plan_calls(spans, size):
            assert 0 < len(call) <= 3
            assert sum(part.count for part in call) <= 10
            assert sum(part.wanted for part in call) <= 4
            for part in call:
                index = next(i for i, one in enumerate(spans) if one is part.span)
                assert (part.first, part.count > 0) == (done[index], True)
                done[index] += part.count
                wanted[index] += part.wanted
        assert done == [len(one.tokens) for one in spans]
        assert wanted == [one.logits if one.wants_logits else 0 for one in spans]


@native
def test_a_failed_step_leaves_an_empty_cache_and_a_runner_that_goes_on(goldens, packed_of, monkeypatch):
    runner = runner_on(packed_of("qwen3", "bf16"))
    tokens, _ = golden(goldens, "qwen3")[0]
    (table,) = tables(1)
    expected = whole(runner, tokens, table)
    program = runner._step()

    def broken(blob, kept, inputs):
        program(blob, kept, inputs)  # the cache is donated
        raise RuntimeError("the device failed")

    monkeypatch.setattr(runner, "_step", lambda: broken)
    with pytest.raises(RuntimeError, match="the device failed"):
        runner.run([Span(tokens, 0, table, True)])
    monkeypatch.undo()
    assert np.array_equal(whole(runner, tokens, table), expected)


@native
def test_what_is_opened_for_what(goldens, packed_of, tmp_path):
    plain, packed = goldens / "qwen3", packed_of("qwen3", "w8a8")

    def opened(directory, **fields):
        return open_runner(directory, spec=EngineSpec(kv_cache_bytes=1 << 20, **fields), cache_dir=tmp_path)

    assert isinstance(opened(plain), Runner)  # float32
    assert isinstance(opened(plain, dtype="bfloat16", kernels="xla"), Runner)
    assert isinstance(opened(plain, dtype="bfloat16"), NativeRunner)
    assert len(list((tmp_path / "packed").iterdir())) == 1
    opened(plain, dtype="bfloat16")
    assert len(list((tmp_path / "packed").iterdir())) == 1
    native_one, twin = opened(packed), opened(packed, kernels="xla")
    assert (native_one.isa, twin.isa) == (library.isa_for("auto"), "xla")
    assert isinstance(opened(plain, kv_dtype="int8"), Runner)


@native
def test_a_changed_model_is_packed_anew(goldens, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(goldens / "qwen3", model)
    spec = EngineSpec(dtype="bfloat16", kv_cache_bytes=1 << 20)
    first = open_runner(model, spec=spec, cache_dir=tmp_path / "cache")
    raw = json.loads((model / "config.json").read_bytes())
    (model / "config.json").write_text(json.dumps(raw | {"rms_norm_eps": 0.5}))
    second = open_runner(model, spec=spec, cache_dir=tmp_path / "cache")
    assert (first.config.norm_eps, second.config.norm_eps) == (pytest.approx(raw["rms_norm_eps"]), 0.5)
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 2


@native
def test_one_program_on_disk_serves_every_batch_and_is_rebuilt_for_another_kind(packed_of, tmp_path):
    model = open_packed(packed_of("qwen3", "w8a8"))

    def opened(isa):
        runner = NativeRunner(model.config, model.weights, spec=SPEC, isa=isa, cache_dir=tmp_path)
        for count in (1, 2, 60):
            runner.run([Span(np.arange(count, dtype=np.int32), 0, np.arange(4, dtype=np.int32), True)])
        return runner.programs.loaded, runner.programs.compiled

    assert opened("portable") == (0, 2)  # the step and the empty cache
    assert opened("portable") == (2, 0)
    assert opened(library.isa_for("auto")) == (0, 2)
    assert asdict(model.weights.matrix("lm_head"))["offset"] % 64 == 0
