"""What goes into the engine loop and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from baseload.domain.errors import Refusal
from baseload.domain.sampling import Sampling
from baseload.domain.work import PhaseTimes, Tier, TokenCounts
from baseload.engine.structured import GrammarState


@dataclass(frozen=True, slots=True)
class Job:
    """A request to the engine: sampling.n choices for each prompt; choice c of prompt p has index p · n + c.

    `grammar` is the start state; each choice gets a copy. `salt` separates prefix caches.
    """

    request_id: str
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    seed: int
    grammar: GrammarState | None = None
    salt: str = ""
    tier: Tier = Tier.DEFAULT

    @property
    def width(self) -> int:
        """How many sequences it makes."""
        return len(self.prompts) * self.sampling.n


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one choice. `text` may be empty (half a character, or a possible stop string)."""

    request_id: str
    index: int
    text: str
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    shown: bool  # the token belongs to the answer; an end token does not
    finish: str | None  # "stop" or "length" with the last


@dataclass(frozen=True, slots=True)
class Ended:
    """All choices of the request have finished."""

    request_id: str
    tokens: TokenCounts
    phases: PhaseTimes


@dataclass(frozen=True, slots=True)
class Failed:
    """The request was not taken, or broke; nothing more comes."""

    request_id: str
    refusal: Refusal


Output = Delta | Ended | Failed
