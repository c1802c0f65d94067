"""The runner: weights, the paged cache and compiled programs; spans of tokens in, logits out."""

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from baseload.domain.model import EngineSpec
from baseload.engine.buckets import Buckets, pick, split
from baseload.engine.config import ModelConfig
from baseload.engine.decoder import layer_params
from baseload.engine.device import configure
from baseload.engine.kv_cache import CacheShape, block_bytes, count_blocks, empty
from baseload.engine.native.opening import open_native
from baseload.engine.opened import OpenedModel
from baseload.engine.programs import Program, ProgramCache, environment_key
from baseload.engine.rope import RopeTable
from baseload.engine.spans import ModelRunner, Span, check_spans
from baseload.engine.steps import Mode, Where, head_step, layer_step, model_step
from baseload.engine.weights import Tree, load_params, resolve_dtype

# The spans of one program call, by index, and their logits (rows beyond them are padding).
Part = tuple[list[int], np.ndarray | None]


class Runner(OpenedModel):
    """Owns the device's arrays. One thread at a time may call `run`; `warm` compiles beside it."""

    def __init__(
        self,
        config: ModelConfig,
        params: Tree,
        *,
        spec: EngineSpec,
        cache_dir: Path | None = None,
        dtype: str,
        mode: Mode | None = None,
    ) -> None:
        self.dtype = dtype
        platform = jax.default_backend()
        self.mode = mode or Mode.choose(dtype, deterministic=spec.deterministic, platform=platform)
        self.shape = shape = _cache_shape(config, spec, dtype)
        super().__init__(config, block_tokens=shape.block_tokens, blocks=shape.blocks, max_context=shape.max_context)
        self.buckets = Buckets.choose(
            max_seqs=spec.max_seqs, max_step_tokens=spec.max_step_tokens, smallest=self.mode.smallest_rows
        )
        self._rope = RopeTable(config)
        self._place(params)
        about = {"config": asdict(config), "cache": asdict(self.shape), "mode": asdict(self.mode)}
        self.programs = ProgramCache(cache_dir, {**about, "threads": spec.threads, **environment_key()})
        self._warmer: threading.Thread | None = None
        self._closing = threading.Event()

    def run(self, spans: Sequence[Span]) -> np.ndarray:
        """Computes all spans and writes their keys and values; float32[rows, vocab] on the host, in span order.

        A row is the logits after a span's last token, for each span with `wants_logits`; where it asks for more
        than one, the rows of its last tokens follow each other. Read-only. After an exception the cache is empty.
        """
        check_spans(spans, max_context=self.max_context, block_tokens=self.block_tokens)
        try:
            return self._run(spans)
        except BaseException:
            self._clear_cache()  # some of it was donated to the call that failed
            raise

    def _run(self, spans: Sequence[Span]) -> np.ndarray:
        parts: list[Part] = []
        decodes = [index for index, span in enumerate(spans) if len(span.tokens) == 1]
        for first, count, bucket in split(self._usable("decode"), len(decodes)):
            parts.append(self._decode(spans, decodes[first : first + count], bucket))
        for index, span in enumerate(spans):
            if len(span.tokens) > 1:
                parts.append(self._prefill(index, span))
        wanted = [index for index, span in enumerate(spans) if span.wants_logits for _ in range(span.logits)]
        for indexes, logits in parts:
            if indexes == wanted and logits is not None:
                return logits[: len(wanted)]
        row_of: dict[int, int] = {}  # the first row of each span
        for row, index in enumerate(wanted):
            row_of.setdefault(index, row)
        out = np.empty((len(wanted), self.vocab_size), np.float32)
        for indexes, logits in parts:
            for row, index in enumerate(indexes):
                if logits is not None and index in row_of:
                    out[row_of[index]] = logits[row]
                    row_of[index] += 1
        return out

    def warm(self, *, background: bool = True) -> None:
        """Loads or compiles every program, the smallest first; in a thread of its own unless told otherwise.

        `run` takes the programs there are: it is usable as soon as the first are ready.
        """
        if not background:
            self._warm_all()
        elif self._warmer is None:
            self._warmer = threading.Thread(target=self._warm_all, name="warm", daemon=True)
            self._warmer.start()

    def close(self) -> None:
        """Ends the background warming after the program it is at."""
        self._closing.set()
        if self._warmer is not None:
            self._warmer.join()

    # -- one call ---------------------------------------------------------------------------------------------

    def _decode(self, spans: Sequence[Span], picks: list[int], bucket: int) -> Part:
        tokens = np.zeros(bucket, np.int32)
        positions = np.full(bucket, spans[picks[0]].start, np.int32)
        tables = np.full((bucket, self.shape.table_blocks), self.shape.blocks, np.int32)
        for row, index in enumerate(picks):
            span = spans[index]
            tokens[row], positions[row] = span.tokens[0], span.start
            tables[row, : len(span.blocks)] = span.blocks
        block = tables[np.arange(bucket), positions // self.block_tokens]
        slots = block * self.block_tokens + positions % self.block_tokens
        slots[len(picks) :] = self.shape.blocks * self.block_tokens
        x = self._layers("decode", bucket, tokens, positions, slots, tables, len(picks))
        if not any(spans[index].wants_logits for index in picks):
            return picks, None
        return picks, self._head(x, bucket, np.arange(bucket, dtype=np.int32), len(picks))

    def _prefill(self, index: int, span: Span) -> Part:
        table = np.full(self.shape.table_blocks, self.shape.blocks, np.int32)
        table[: len(span.blocks)] = span.blocks
        usable = self._usable("prefill")
        if span.wants_logits and span.logits > usable[-1]:  # in one call, even if its program is still to be compiled
            usable = (pick(self.buckets.prefill, span.logits),)
        calls = split(usable, len(span.tokens))
        for first, count, bucket in calls:
            tokens = np.zeros(bucket, np.int32)
            tokens[:count] = span.tokens[first : first + count]
            positions = np.full(bucket, span.start + first + count - 1, np.int32)
            positions[:count] = span.start + first + np.arange(count, dtype=np.int32)
            slots = table[positions // self.block_tokens] * self.block_tokens + positions % self.block_tokens
            slots[count:] = self.shape.blocks * self.block_tokens
            x = self._layers("prefill", bucket, tokens, positions, slots, table, count)
        if not span.wants_logits:
            return [index], None
        if span.logits > count:
            raise ValueError("the last tokens of a span do not fit into one step's rows")
        rows = max(self.buckets.decode[0], 1 << (span.logits - 1).bit_length())
        picks = np.full(rows, count - 1, np.int32)
        picks[: span.logits] = np.arange(count - span.logits, count)
        return [index] * span.logits, self._head(x, bucket, picks, span.logits)

    def _layers(
        self,
        kind: str,
        bucket: int,
        tokens: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        tables: np.ndarray,
        active: int,
    ) -> jax.Array:
        """All layers over one padded bucket of rows; the hidden states after the last."""
        cos, sin = self._rope.at(positions)
        host = Where(cos, sin, slots.astype(np.int32), positions, tables, np.int32(active))
        x: jax.Array
        x, where = jax.device_put((self._embed[tokens].astype(np.float32), host))
        if self.mode.whole:
            whole = self._model_program(kind, bucket)
            x, self._keys[:], self._values[:] = whole(self._weights, self._keys, self._values, x, where)
            return x
        for index, (attn, feed, window) in enumerate(self._weights):
            program = self._layer_program(kind, bucket, self.config.is_moe[index])
            x, self._keys[index], self._values[index] = program(
                attn, feed, self._keys[index], self._values[index], x, where, window
            )
        return x

    def _head(self, x: jax.Array, rows: int, picks: np.ndarray, active: int) -> np.ndarray:
        program = self._head_program(rows, len(picks))
        at, count = jax.device_put((picks, np.int32(active)))
        return np.asarray(program(self._final_norm, self._head_weight, x, at, count))

    # -- programs ---------------------------------------------------------------------------------------------

    def _usable(self, kind: str) -> tuple[int, ...]:
        """The buckets whose programs are ready; where none is, the smallest, which is then compiled."""
        sizes = self.buckets.decode if kind == "decode" else self.buckets.prefill
        ready = tuple(size for size in sizes if all(self.programs.ready(name) for name in self._names(kind, size)))
        return ready or sizes[:1]

    def _names(self, kind: str, rows: int) -> list[str]:
        if self.mode.whole:
            return [_whole_name(kind, rows), _head_name(rows, self._picks(kind, rows))]
        kinds = sorted(set(self.config.is_moe))
        return [_layer_name(kind, rows, sparse) for sparse in kinds] + [_head_name(rows, self._picks(kind, rows))]

    def _picks(self, kind: str, rows: int) -> int:
        return rows if kind == "decode" else self.buckets.decode[0]

    def _warm_all(self) -> None:
        order = [("decode", self.buckets.decode[0]), ("prefill", self.buckets.prefill[0])]
        order += [("prefill", rows) for rows in self.buckets.prefill[1:]]
        order += [("decode", rows) for rows in self.buckets.decode[1:]]
        for kind, rows in order:
            for sparse in sorted(set(self.config.is_moe)):
                if self._closing.is_set():
                    return
                if self.mode.whole:
                    self._model_program(kind, rows)
                else:
                    self._layer_program(kind, rows, sparse)
            self._head_program(rows, self._picks(kind, rows))

    def _layer_program(self, kind: str, rows: int, sparse: bool) -> Program:
        def lower() -> jax.stages.Lowered:
            step = layer_step(self.config, self.shape, self.mode, prefill=kind == "prefill", sparse=sparse)
            attn, feed, window = self._weights[self.config.is_moe.index(sparse)]
            cache = self._cache_spec()
            x = _spec((rows, self.config.hidden), np.float32)
            where = _where_shapes(self.config, self.shape, kind, rows)
            return jax.jit(step, donate_argnums=(2, 3, 4)).lower(attn, feed, cache, cache, x, where, window)

        return self.programs.get(_layer_name(kind, rows, sparse), lower)

    def _model_program(self, kind: str, rows: int) -> Program:
        def lower() -> jax.stages.Lowered:
            step = model_step(self.config, self.shape, self.mode, prefill=kind == "prefill")
            caches = [self._cache_spec()] * self.config.layers
            x = _spec((rows, self.config.hidden), np.float32)
            where = _where_shapes(self.config, self.shape, kind, rows)
            return jax.jit(step, donate_argnums=(1, 2, 3)).lower(self._weights, caches, caches, x, where)

        return self.programs.get(_whole_name(kind, rows), lower)

    def _head_program(self, rows: int, picks: int) -> Program:
        def lower() -> jax.stages.Lowered:
            x = _spec((rows, self.config.hidden), np.float32)
            at = _spec((picks,), np.int32)
            step = jax.jit(head_step(self.config, self.mode))
            return step.lower(self._final_norm, self._head_weight, x, at, _spec((), np.int32))

        return self.programs.get(_head_name(rows, picks), lower)

    # -- arrays -----------------------------------------------------------------------------------------------

    def _place(self, params: Tree) -> None:
        """Puts weights on the device layer by layer, without a copy where the device can use host memory."""
        config = self.config

        def put(array: Any, *, matrix: bool) -> jax.Array:
            if array.ndim == 3 and array.dtype.itemsize == 2:
                array = array.view(np.uint16)  # experts; see moe.expert_weight
            if matrix and self.mode.in_out:
                array = _transposed(array)
            placed: jax.Array = jax.device_put(array, may_alias=True)
            return placed

        self._embed: np.ndarray = params["embed"]
        self._final_norm = put(params["final_norm"], matrix=False)
        self._head_weight = put(params["embed" if config.tied else "lm_head"], matrix=True)
        self._weights: list[tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]] = []
        for index in range(config.layers):
            attn, feed = (
                {name: put(value, matrix=value.ndim > 1) for name, value in group.items()}
                for group in layer_params(config, params, index)
            )
            window = jax.device_put(np.int32(config.windows[index]))
            self._weights.append((attn, feed, window))
        self._clear_cache()

    def _clear_cache(self) -> None:
        zeros, layers = empty(self.shape), range(self.config.layers)
        self._keys: list[Any] = [jax.device_put(zeros, may_alias=False) for _ in layers]
        self._values: list[Any] = [jax.device_put(zeros, may_alias=False) for _ in layers]

    def _cache_spec(self) -> Any:
        """Of one layer's keys or values: the shapes alone."""
        return jax.tree.map(lambda array: _spec(array.shape, array.dtype), self._keys[0])


def open_runner(model_dir: Path | str, *, spec: EngineSpec, cache_dir: Path | str | None) -> ModelRunner:
    """Loads a Hugging Face or packed directory, for the native kernels where they cover it, else for XLA.

    `cache_dir` keeps compiled programs and packed weights; None keeps none. Raises ModelError,
    UnsupportedArchitecture or BadWeights; then nothing was left behind.
    """
    configure(threads=spec.threads)
    cache = None if cache_dir is None else Path(cache_dir)
    native = open_native(Path(model_dir), spec=spec, cache_dir=cache)
    if native is not None:
        return native
    config, params = load_params(model_dir, spec.dtype)
    directory = None if cache is None else cache / "programs"
    return Runner(config, params, spec=spec, cache_dir=directory, dtype=resolve_dtype(config, spec.dtype))


def _cache_shape(config: ModelConfig, spec: EngineSpec, dtype: str) -> CacheShape:
    context = min(spec.max_context or config.max_context, config.max_context)
    int8 = spec.kv_dtype == "int8"
    blocks = count_blocks(config, spec, block_bytes(config, spec.block_tokens, dtype, int8=int8))
    return CacheShape(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        blocks=blocks,
        block_tokens=spec.block_tokens,
        max_context=min(context, blocks * spec.block_tokens),
        dtype=dtype,
        int8=int8,
    )


def _where_shapes(config: ModelConfig, shape: CacheShape, kind: str, rows: int) -> Where:
    angles = _spec((rows, config.head_dim // 2), np.float32)
    row = _spec((rows,), np.int32)
    width = (shape.table_blocks,) if kind == "prefill" else (rows, shape.table_blocks)
    tables, scalar = _spec(width, np.int32), _spec((), np.int32)
    return Where(angles, angles, row, row, tables, scalar)


def _transposed(array: np.ndarray) -> np.ndarray:
    """The last two axes exchanged, 16 rows at a time: eight times faster than a strided copy of the whole."""
    out = np.empty((*array.shape[:-2], array.shape[-1], array.shape[-2]), array.dtype)
    for row in range(0, array.shape[-2], 16):
        out[..., row : row + 16] = np.swapaxes(array[..., row : row + 16, :], -1, -2)
    return out


def _layer_name(kind: str, rows: int, sparse: bool) -> str:
    return f"{kind}-{rows}-{'sparse' if sparse else 'dense'}"


def _whole_name(kind: str, rows: int) -> str:
    return f"{kind}-{rows}-whole"


def _head_name(rows: int, picks: int) -> str:
    return f"head-{rows}-{picks}"


def _spec(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
