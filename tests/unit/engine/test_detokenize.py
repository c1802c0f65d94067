from hypothesis import given
from hypothesis import strategies as st

from baseload.engine.detokenize import Detokenizer, StopStrings


@given(st.text(), st.lists(st.integers(1, 3), min_size=1))
def test_text_comes_whole_however_its_bytes_are_cut(text: str, cuts: list[int]) -> None:
    raw = text.encode()
    pieces, at = [], 0
    while at < len(raw):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(raw[at : at + size])
        at += size
    detokenizer = Detokenizer(pieces.__getitem__)
    shown = [detokenizer.push(i) for i in range(len(pieces))]
    assert "".join(shown) == text


def test_half_a_character_is_never_shown() -> None:
    pieces = [b"a\xf0\x9f", b"\x99\x82b", b"\xff", b"c\xe6", b"\x9d"]
    detokenizer = Detokenizer(pieces.__getitem__)
    assert [detokenizer.push(i) for i in range(5)] == ["a", "🙂b", "\ufffd", "c", ""]


def shown_of(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    checker = StopStrings(stops)
    out = ""
    for piece in pieces:
        out += checker.push(piece)
        if checker.found is not None:
            return out, checker.found
    return out + checker.flush(), None


def test_a_stop_string_across_tokens_never_leaks() -> None:
    assert shown_of(["STOP"], ["abS", "T", "OP", "cd"]) == ("ab", "STOP")
    assert shown_of(["STOP"], ["abS", "T", "AR"]) == ("abSTAR", None)
    assert shown_of(["aab"], ["a", "a", "a", "b"]) == ("a", "aab")
    checker = StopStrings(["STOP"])
    assert checker.push("xST") == "x"
    assert checker.push("y") == "STy"


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """One character at a time: the string that is complete first wins, of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_the_result_does_not_depend_on_the_cut(stops: list[str], pieces: list[str]) -> None:
    assert shown_of(stops, pieces) == expected(stops, "".join(pieces))
