"""Where the float weights come from, one layer at a time: a Hugging Face directory or a GGUF file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baseload.domain.errors import ModelError
from baseload.engine.config import ModelConfig
from baseload.engine.gguf.read import is_gguf, open_weights
from baseload.engine.quantize.transforms import Layer, Matrix
from baseload.engine.weights import Piece, layer_pieces, open_reader, pieces, top_pieces

# The leaves of our tree (engine/weights.py) under the names of a packed directory.
_NAMES = {"attn.norm": "attn_norm", "mlp.norm": "feed_norm", "moe.norm": "feed_norm", "moe.router": "router"}
_EXPERTS = {"moe.gate_up": "experts.gate_up", "moe.down": "experts.down"}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's float weights. `read` gives one tensor in its own type, mapped where the file allows it."""

    path: Path
    config: ModelConfig
    read: Callable[[Piece], NDArray[np.generic]]

    def check(self) -> None:
        """Raises BadWeights where a tensor is missing or misshapen; of a folder no more than headers are read."""
        if self.path.is_dir():
            for piece in pieces(self.config):
                self.read(piece)

    def layer(self, index: int) -> Layer:
        """Layer `index` as float32: attn_norm[H], qkv[·, H], out, feed_norm, gate_up[2I, H], down[H, I] and so on.

        A sparse layer has router[E, H], experts.gate_up[E, 2F, H] and experts.down[E, H, F].
        """
        return self._gather(list(layer_pieces(self.config, index)))

    def top(self) -> Layer:
        """embed[V, H], final_norm[H] and lm_head[V, H], which is the embedding itself where they are tied."""
        found = self._gather(list(top_pieces(self.config)))
        found.setdefault("lm_head", found["embed"])
        return found

    def _gather(self, pieces: list[Piece]) -> Layer:
        parts: dict[str, list[Piece]] = {}
        for piece in pieces:
            parts.setdefault(_name(piece), []).append(piece)
        return {name: self._join(name, those) for name, those in parts.items()}

    def _join(self, name: str, pieces: list[Piece]) -> Matrix:
        """The rows of all pieces of one matrix; of experts, stacked."""
        read = {piece: np.asarray(self.read(piece), np.float32) for piece in pieces}
        if not name.startswith("experts."):
            ordered = sorted(pieces, key=lambda piece: piece.row)
            return np.concatenate([read[piece] for piece in ordered])
        experts: dict[int, list[Piece]] = {}
        for piece in pieces:
            experts.setdefault(piece.index[-1], []).append(piece)
        return np.stack(
            [
                np.concatenate([read[piece] for piece in sorted(those, key=lambda piece: piece.row)])
                for _, those in sorted(experts.items())
            ]
        )


def open_source(path: Path) -> ModelSource:
    """The model at `path`; ModelError or BadWeights where it cannot be read."""
    if is_gguf(path):
        config, read = open_weights(path)
        return ModelSource(path, config, read)
    if not path.is_dir():
        raise ModelError(
            f"{path} is neither a folder nor a .gguf file.", hint="Give a Hugging Face folder or a GGUF file."
        )
    config, read = open_reader(path)
    return ModelSource(path, config, read)


def _name(piece: Piece) -> str:
    key = f"{piece.group}.{piece.leaf}" if piece.group else piece.leaf
    return _EXPERTS.get(key) or _NAMES.get(key) or piece.leaf
