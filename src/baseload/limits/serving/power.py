"""Power of accelerators under load, by what they do: reading memory, computing, or nothing.

    power / sheet power = rest + gain · (memory share + weight · compute share) ^ bend     and at most MOST, or a cap

The shares are of the sheet's bandwidth and FLOPs, reached over the time a phase takes. The curve bends because clocks
and much of the chip run while a step waits: a tenth of the bandwidth costs a third of all of it in power. The four
numbers were fitted to decoding and prompts of Llama-2-70B and BLOOM-176B on A100 at two, four and eight of them
(Splitwise, ISCA 2024; Mutinifni/splitwise-sim@8f99e7d, MIT). Host, cooling and network are left out.

A cap below that is kept by slowing the clock to a fraction f, which also lowers the voltage v:

    power = rest + core · f · v(f)² + memory / time       v = VOLT + (1 − VOLT) · f
    time  = ((compute / f)³ + memory³)^⅓ over the same at full clock

Switched power is frequency times voltage squared; the memory keeps its own clock and draws by the bytes it moves. So
a phase that multiplies takes longer under a cap, and one that waits for memory hardly does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baseload.limits.catalogue.accelerators import Accelerator

Floats = NDArray[np.float64]
REST = 0.15  # of the sheet's power: memory refreshed, contexts held, nothing run
MOST = 1.03  # prompts were seen to draw a little more than the sheet says
VOLT = 0.3  # of the voltage, what is left as the clock goes to nothing: docs/limits.md, Power, says what chose it
LEAST_CLOCK = 0.15  # of the full clock: below it no accelerator goes (A100: 210 of 1410 MHz)
JOULES_PER_BYTE = 31.4e-12  # of HBM2: 3.92 pJ a bit (O'Connor et al., Fine-Grained DRAM, MICRO 2017)
MEMORY_DRAW = 0.15  # of the sheet's power, by memory at full bandwidth, where the sheet does not say enough
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


class Capped(NamedTuple):
    """A phase under a cap: its power over the sheet's, its clock and its time over those without a cap."""

    share: float
    clock: float
    slowdown: float


@dataclass(frozen=True, slots=True)
class Phases:
    """Shares of bandwidth and FLOPs in use while a prompt is computed and while tokens are made, at full clock."""

    prompt_memory: float
    prompt_compute: float
    token_memory: float
    token_compute: float
    cap: float = 1.0
    memory_draw: float = MEMORY_DRAW  # of the sheet's power, by memory at its full bandwidth

    def capped(self, draw: Draw) -> tuple[Capped, Capped]:
        """(prompt, token) under the cap."""
        prompt = _under(draw, self.prompt_memory, self.prompt_compute, self, prompt=True)
        return prompt, _under(draw, self.token_memory, self.token_compute, self, prompt=False)

    def shares(self, draw: Draw) -> tuple[float, float]:
        """(prompt, token): shares of the sheet's power. The higher phase is the peak."""
        prompt = draw.share(self.prompt_memory, self.prompt_compute, prompt=True, cap=self.cap)
        token = draw.share(self.token_memory, self.token_compute, prompt=False, cap=self.cap)
        return prompt, token


def _under(draw: Draw, memory: float, compute: float, phases: Phases, *, prompt: bool) -> Capped:
    """The fastest clock at which a phase keeps the cap; LEAST_CLOCK, and more power than it, where none does."""
    full = draw.share(memory, compute, prompt=prompt)
    if phases.cap >= min(1.0, full):
        return Capped(full, 1.0, 1.0)
    by_memory = min(full - draw.rest, phases.memory_draw * min(1.0, memory))

    def at(clock: float) -> Capped:
        whole = compute**3 + memory**3
        time = (((compute / clock) ** 3 + memory**3) / whole) ** (1.0 / 3.0) if whole > 0 else 1.0
        volts = VOLT + (1.0 - VOLT) * clock
        core = (full - draw.rest - by_memory) * clock * volts**2
        return Capped(draw.rest + core + by_memory / time, clock, time)

    low, high = LEAST_CLOCK, 1.0
    if at(low).share > phases.cap:
        return at(low)
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if at(middle).share <= phases.cap else (low, middle)
    return at(low)


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
