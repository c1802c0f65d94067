"""From tokens to text as they come: whole characters only, and nothing that may yet become a stop string."""

import codecs
from collections.abc import Callable, Sequence


class Detokenizer:
    """Turns one token after the other into text; constant work per token.

    Bytes of a character that is not complete yet are held back; bytes that can never be a character become U+FFFD.
    `token_bytes` gives a token's bytes (empty for special tokens).
    """

    __slots__ = ("_bytes_of", "_decoder")

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._bytes_of = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        return self._decoder.decode(self._bytes_of(token))


class StopStrings:
    """Finds the first stop string in a stream of text, and lets nothing of it out.

    The string that is complete first wins; among those complete at the same character, the longest. So the result
    does not depend on how the text is cut into tokens.
    """

    __slots__ = ("_held", "_longest", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that may go out now. Once `found` is set, all that stood before the stop string is out."""
        if not self._stops:
            return text
        assert self.found is None
        held = self._held + text
        ends = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return held[: end - len(self.found)]
        keep = self._prefix_at_end(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What is still held back; the stream has ended."""
        held, self._held = self._held, ""
        return held

    def _prefix_at_end(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
