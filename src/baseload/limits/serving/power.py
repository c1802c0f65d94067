"""Power of accelerators under load, by what they do: reading memory, computing, or nothing.

    power / sheet power = rest + gain · (memory share + weight · compute share) ^ bend     and at most MOST, or a cap

The shares are of the sheet's bandwidth and FLOPs, reached over the time a phase takes. The curve bends because clocks
and much of the chip run while a step waits: a tenth of the bandwidth costs a third of all of it in power. The four
numbers were fitted to decoding and prompts of Llama-2-70B and BLOOM-176B on A100 at two, four and eight of them
(Splitwise, ISCA 2024; Mutinifni/splitwise-sim@8f99e7d, MIT). Host, cooling and network are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.limits.catalogue.accelerators import Accelerator

Floats = NDArray[np.float64]
REST = 0.15  # of the sheet's power: memory refreshed, contexts held, nothing run
MOST = 1.03  # prompts were seen to draw a little more than the sheet says
NAMES = ("gain", "bend", "prompt_weight", "decode_weight")
WIDTHS = (0.25, 0.15, 0.4, 0.4)  # of a calibration's moves, in logarithms
NOISE = 0.06


@dataclass(frozen=True, slots=True)
class Draw:
    """The curve's numbers."""

    gain: float = 0.744
    bend: float = 0.599
    prompt_weight: float = 2.62
    decode_weight: float = 4.20
    rest: float = REST

    def share(self, memory: float, compute: float, *, prompt: bool, cap: float = 1.0) -> float:
        """Of the sheet's power, with such shares of bandwidth and FLOPs in use; `cap` is a limit set below it."""
        busy = memory + (self.prompt_weight if prompt else self.decode_weight) * compute
        most = MOST if cap >= 1.0 else cap
        drawn: float = self.rest + self.gain * max(0.0, busy) ** self.bend
        return max(self.rest, min(most, drawn))


@dataclass(frozen=True, slots=True)
class Phases:
    """Shares of bandwidth and FLOPs in use while a prompt is computed and while tokens are made."""

    prompt_memory: float
    prompt_compute: float
    token_memory: float
    token_compute: float
    cap: float = 1.0

    def shares(self, draw: Draw) -> tuple[float, float]:
        """(prompt, token): shares of the sheet's power. The higher phase is the peak."""
        prompt = draw.share(self.prompt_memory, self.prompt_compute, prompt=True, cap=self.cap)
        token = draw.share(self.token_memory, self.token_compute, prompt=False, cap=self.cap)
        return prompt, token


def fit_draw(phases: Sequence[Phases], peak: Sequence[float], average: Sequence[float], *, start: Draw) -> Draw:
    """A curve nearer to measured shares of the sheet's power (0: not measured), from `start`, by robust steps."""
    goal = np.array([*peak, *average])
    seen = np.flatnonzero(goal > 0)
    if not len(seen):
        return start
    first = np.log([getattr(start, name) for name in NAMES])
    widths = np.array(WIDTHS)

    def curve(x: Floats) -> Draw:
        gain, bend, prompt, decode = np.exp(first + x).tolist()
        return Draw(gain, bend, prompt, decode, start.rest)

    def errors(x: Floats) -> Floats:
        draw = curve(x)
        both = [p.shares(draw) for p in phases]
        said = np.array([*(max(pair) for pair in both), *(token for _, token in both)])
        gaps = np.log(said[seen] / goal[seen]) / NOISE
        soft: Floats = np.concatenate([np.sign(gaps) * np.sqrt(2.0 * (np.sqrt(1.0 + gaps**2) - 1.0)), x / widths])
        return soft

    x, damping = np.zeros(len(NAMES)), 1e-2
    now = errors(x)
    for _ in range(30):
        slopes = np.stack([(errors(x + step) - now) / 1e-4 for step in 1e-4 * np.eye(len(NAMES))], axis=1)
        square = slopes.T @ slopes
        trial = x - np.linalg.solve(square + damping * np.diag(np.diag(square)), slopes.T @ now)
        after = errors(trial)
        if after @ after < now @ now:
            gained = float(now @ now - after @ after)
            x, now, damping = trial, after, damping / 4.0
            if gained < 1e-5 * float(now @ now):
                break
        else:
            damping *= 6.0
    return curve(x)


@dataclass(frozen=True, slots=True)
class Watts:
    """Watts of a whole replica; all 0 where the sheet gives no power."""

    idle_w: float
    sheet_w: float
    draw: Draw

    @property
    def prefill_w(self) -> float:
        """While prompts saturate it."""
        return self.sheet_w

    def decoding(self, memory: float, compute: float) -> float:
        """While it decodes, with such shares of bandwidth and FLOPs in use."""
        return self.sheet_w * self.draw.share(memory, compute, prompt=False)


def watts_of(chip: Accelerator, accelerators: int = 1, draw: Draw | None = None) -> Watts:
    """Of so many accelerators of a kind, cooling and host left out."""
    draw, whole = draw or Draw(), (chip.tdp_w or 0.0) * accelerators
    return Watts(draw.rest * whole, whole, draw)
