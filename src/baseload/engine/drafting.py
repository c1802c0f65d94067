"""Guessing the next tokens of a sequence: from what it said before, or with a smaller model of the same vocabulary.

A guess costs nothing but time: the model samples at every guessed place exactly as it would have without the guess,
from the same logits and with the same random number, and a guess stays only where it is what was sampled. The
answer is therefore the same token for token, greedy or not, wherever a row's logits do not depend on the rows beside
it (docs/decisions/0014-guessing-ahead.md).
"""

from collections.abc import Sequence

_LONGEST = 4  # tokens of context to find again, tried first
_SHORTEST = 2
_PLACES = 1 << 18  # contexts remembered per sequence and length


class PromptLookup:
    """Guesses that what followed the last tokens the last time follows again (prompt lookup decoding)."""

    __slots__ = ("_next", "_read", "_tokens")

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = list(tokens)
        self._read = 0  # tokens that are known to follow what came before them; the rest is read when asked
        self._next: list[dict[tuple[int, ...], int]] = [{} for _ in range(_SHORTEST, _LONGEST + 1)]

    def push(self, token: int) -> None:
        """The sequence grew by this token."""
        self._tokens.append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence grew by these tokens."""
        self._tokens += tokens

    @property
    def unread(self) -> int:
        """Tokens that the next guess has to read first."""
        return len(self._tokens) - self._read

    def read_on(self) -> None:
        """Remember what follows each context, up to the last token."""
        tokens = self._tokens
        for length, places in zip(range(_SHORTEST, _LONGEST + 1), self._next, strict=True):
            for end in range(max(self._read, length), len(tokens)):
                if len(places) < _PLACES:
                    places[tuple(tokens[end - length : end])] = end
        self._read = len(tokens)

    def guess(self, most: int) -> Sequence[int]:
        """What followed the longest repeated context, its latest occurrence first."""
        if most <= 0:
            return ()
        self.read_on()
        end = len(self._tokens)
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            at = self._next[length - _SHORTEST].get(tuple(self._tokens[end - length :])) if end >= length else None
            if at is not None:
                return self._repeated(at, most)
        return ()

    def _repeated(self, at: int, most: int) -> list[int]:
        """Tokens from `at` on; past the end the repetition goes on with what it has itself guessed."""
        found = self._tokens[at : at + most]
        while len(found) < most:
            found.append(found[len(found) - (len(self._tokens) - at)])
        return found
