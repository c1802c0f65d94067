"""The runner on the native kernels: mapped weights, one cache, one program for every batch."""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from baseload.domain.model import EngineSpec
from baseload.engine.config import ModelConfig
from baseload.engine.kv_cache import count_blocks
from baseload.engine.native import library
from baseload.engine.native.attention import PagedCache, new_cache
from baseload.engine.native.calls import StepArrays, StepSize, plan_calls
from baseload.engine.native.features import XLA
from baseload.engine.native.steps import NativeModel, build_step
from baseload.engine.native.weights_map import WeightsMap
from baseload.engine.opened import OpenedModel
from baseload.engine.programs import Program, ProgramCache, environment_key
from baseload.engine.rope import RopeTable
from baseload.engine.spans import Span, check_spans

LEAST_PICKS = 32
_STEP, _CACHE = "native-step", "native-cache"


class NativeRunner(OpenedModel):
    """Owns the weights' bytes and the cache. One thread at a time may call `run`; `warm` compiles beside it.

    Rows of all spans, prompts and single tokens alike, go through the layers together. Bits of a row depend only on
    its own sequence: not on its batch-mates, nor on how its prompt was cut.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightsMap,
        *,
        spec: EngineSpec,
        isa: str,
        hadamard: int = 0,
        cache_dir: Path | None = None,
    ) -> None:
        self.isa = isa
        self.cache = cache = _paged_cache(config, spec)
        context = min(spec.max_context or config.max_context, config.max_context)
        longest = min(context, cache.blocks * cache.block_tokens)
        super().__init__(config, block_tokens=cache.block_tokens, blocks=cache.blocks, max_context=longest)
        rows = max(spec.max_step_tokens, spec.max_seqs)
        self.size = StepSize(
            rows=rows,
            spans=min(spec.max_seqs, rows),
            picks=min(rows, max(spec.max_seqs, LEAST_PICKS)),
            table_blocks=-(-longest // cache.block_tokens),
        )
        self._model = NativeModel(config, weights, self.cache, isa, hadamard)
        self._blob = jax.device_put(weights.blob, may_alias=True)
        self._arrays = StepArrays(self.size, RopeTable(config), config.head_dim, self.cache.block_tokens)
        self.programs = ProgramCache(cache_dir, self._key(spec))
        self._kept: Any = None
        self._warmer: threading.Thread | None = None

    def run(self, spans: Sequence[Span]) -> np.ndarray:
        """Computes all spans and writes their keys and values; float32[rows, vocab] on the host, in span order.

        A row is the logits after a span's last token, for each span with `wants_logits`; where it asks for more
        than one, the rows of its last tokens follow each other. Read-only. After an exception the cache is empty.
        """
        check_spans(spans, max_context=self.max_context, block_tokens=self.block_tokens)
        program = self._step()
        found = []
        try:
            for call in plan_calls(spans, self.size):
                inputs, picked = self._arrays.fill(call)
                logits, self._kept = program(self._blob, self._cache(), inputs)
                found.append(np.asarray(logits)[:picked])  # waits: the inputs' memory is free again
        except BaseException:
            self._kept = None  # it was donated; what it held is gone
            raise
        return found[0] if len(found) == 1 else np.concatenate(found)

    def warm(self, *, background: bool = True) -> None:
        """Loads or compiles the program; in a thread of its own unless told otherwise. `run` waits for it."""
        if not background:
            self._step()
        elif self._warmer is None:
            self._warmer = threading.Thread(target=self._step, name="warm", daemon=True)
            self._warmer.start()

    def close(self) -> None:
        """Waits for the background warming."""
        if self._warmer is not None:
            self._warmer.join()

    def _cache(self) -> Any:
        if self._kept is None:
            make = self.programs.get(_CACHE, lambda: jax.jit(lambda: new_cache(self.cache, self.isa)).lower())
            self._kept = make()
        return self._kept

    def _step(self) -> Program:
        def lower() -> jax.stages.Lowered:
            kept = jax.eval_shape(lambda: new_cache(self.cache, self.isa))
            blob = jax.eval_shape(lambda: self._blob)
            step = jax.jit(build_step(self._model), donate_argnums=(1,))
            return step.lower(blob, kept, self._arrays.shapes)

        return self.programs.get(_STEP, lower)

    def _key(self, spec: EngineSpec) -> dict[str, Any]:
        """All that the program is compiled for; the weights only by what lies where."""
        model = self._model
        index = json.dumps({name: asdict(entry) for name, entry in model.weights.entries.items()}, sort_keys=True)
        return {
            "config": asdict(self.config),
            "weights": hashlib.sha256(index.encode()).hexdigest()[:32],
            "bytes": int(model.weights.blob.size),
            "cache": asdict(self.cache),
            "size": asdict(self.size),
            "isa": self.isa,
            "hadamard": model.hadamard,
            "kernels": library.digest() if self.isa != XLA else "",
            "threads": spec.threads,
            **environment_key(),
        }


def _paged_cache(config: ModelConfig, spec: EngineSpec) -> PagedCache:
    one = PagedCache(
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        blocks=1,
        block_tokens=spec.block_tokens,
        int8=spec.kv_dtype == "int8",
    )
    blocks = count_blocks(config, spec, one.block_bytes)
    return PagedCache(
        layers=one.layers,
        heads=one.heads,
        kv_heads=one.kv_heads,
        head_dim=one.head_dim,
        blocks=blocks,
        block_tokens=one.block_tokens,
        int8=one.int8,
    )
