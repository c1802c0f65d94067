"""What a model's maker says of sampling: the defaults in generation_config.json, for requests that name none."""

from pathlib import Path
from typing import Any

from baseload.domain.errors import ModelError
from baseload.domain.sampling import Sampling
from baseload.engine.config import read_json


def read_defaults(model_dir: Path) -> Sampling:
    """The sampling of a request that names nothing: OpenAI's defaults where the model directory says nothing either.

    `"do_sample": false`, said outright, means greedy. Raises ModelError for a value out of range.
    """
    path = model_dir / "generation_config.json"
    if not path.exists():
        return Sampling()
    raw = read_json(path)
    if raw.get("do_sample") is False:
        return Sampling(temperature=0.0)
    return Sampling(
        temperature=_number(raw, path, "temperature", 1.0, most=2.0),
        top_p=_number(raw, path, "top_p", 1.0, most=1.0),
        top_k=max(0, int(_number(raw, path, "top_k", 0, most=1 << 20))),
        min_p=_number(raw, path, "min_p", 0.0, most=1.0),
    )


def _number(raw: dict[str, Any], path: Path, name: str, default: float, *, most: float) -> float:
    value = raw.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= most:
        raise ModelError(f"{path}: {name} is {value!r}.", hint=f"It must be a number up to {most:g}.")
    return max(0.0, float(value))
