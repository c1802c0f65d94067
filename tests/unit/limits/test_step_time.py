"""The step-time table: exact at its points, straight between and beyond them, loud about bad ones."""

import pytest

from baseload.domain.errors import DataError
from baseload.limits.step_time import (
    DEFAULT,
    StepTimeSpec,
    StepTimeTable,
    default_table,
    parse_json,
    parse_toml,
)

MS = 1_000_000
TABLE = StepTimeTable(
    StepTimeSpec(
        basis="stated: a test",
        fixed_ms=5,
        prefill=((100, 10.0), (200, 40.0)),
        decode=((1, 1.0), (4, 4.0), (8, 20.0)),
        context=((1000, 2.0),),
    )
)


def step(prefill: int = 0, rows: int = 0, context: int = 0) -> int:
    return TABLE.step_ns(prefill_tokens=prefill, decode_rows=rows, context_tokens=context)


@pytest.mark.parametrize(
    ("prefill", "rows", "context", "ms"),
    [
        (0, 0, 0, 5),
        (100, 0, 0, 15),
        (50, 0, 0, 10),  # between the origin and the first point
        (150, 0, 0, 30),  # between points
        (300, 0, 0, 75),  # beyond the last: on with the last slope
        (0, 1, 0, 6),
        (0, 6, 0, 17),
        (0, 12, 0, 41),
        (0, 0, 500, 6),
        (100, 4, 1000, 21),  # terms add up, `fixed` once
    ],
)
def test_piecewise_linear(prefill: int, rows: int, context: int, ms: int) -> None:
    assert step(prefill, rows, context) == ms * MS


def test_more_work_never_takes_less_time() -> None:
    for rows in range(40):
        assert step(rows=rows) <= step(rows=rows + 1)
    for tokens in range(0, 400, 7):
        assert step(prefill=tokens) <= step(prefill=tokens + 7)


def test_a_step_takes_time_even_if_the_table_says_none() -> None:
    spec = StepTimeSpec(basis="stated", fixed_ms=0, prefill=((1, 0.0),), decode=((1, 0.0),))
    assert StepTimeTable(spec).step_ns(prefill_tokens=9, decode_rows=9, context_tokens=9) == 1


def test_the_default_table_gives_back_the_rates_it_was_measured_from() -> None:
    table = default_table()

    def rate(tokens: int, prefill: int, rows: int) -> float:
        return tokens / table.step_ns(prefill_tokens=prefill, decode_rows=rows, context_tokens=0) * 1e9

    assert rate(512, 512, 0) == pytest.approx(1386, rel=0.001)
    assert rate(1, 0, 1) == pytest.approx(27.6, rel=0.001)
    assert rate(8, 0, 8) == pytest.approx(199, rel=0.001)
    assert rate(32, 0, 32) == pytest.approx(441, rel=0.001)
    assert table.basis.startswith("measured")


def test_toml_and_json_say_the_same() -> None:
    toml = b'basis = "stated"\nfixed_ms = 1.5\nprefill = [[10, 2.0]]\ndecode = [[1, 0.5]]\n'
    json = b'{"basis": "stated", "fixed_ms": 1.5, "prefill": [[10, 2.0]], "decode": [[1, 0.5]]}'
    for table in (parse_toml(toml, name="t.toml"), parse_json(json, name="t.json")):
        assert table.step_ns(prefill_tokens=10, decode_rows=2, context_tokens=7) == 4_500_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"basis = ", "not TOML"),
        (b"\xff", "not TOML"),
        (b"fixed_ms = 1.0\nprefill = [[1, 1.0]]\ndecode = [[1, 1.0]]", "basis"),
        (b'basis = ""\nfixed_ms = 1.0\nprefill = [[1, 1.0]]\ndecode = [[1, 1.0]]', "basis"),
        (b'basis = "x"\nfixed_ms = -1.0\nprefill = [[1, 1.0]]\ndecode = [[1, 1.0]]', "fixed_ms"),
        (b'basis = "x"\nfixed_ms = nan\nprefill = [[1, 1.0]]\ndecode = [[1, 1.0]]', "fixed_ms"),
        (b'basis = "x"\nfixed_ms = 1.0\nprefill = []\ndecode = [[1, 1.0]]', "at least one point"),
        (b'basis = "x"\nfixed_ms = 1.0\nprefill = [[2, 1.0], [2, 3.0]]\ndecode = [[1, 1.0]]', "counts must rise"),
        (b'basis = "x"\nfixed_ms = 1.0\nprefill = [[2, 1.0], [3, 0.5]]\ndecode = [[1, 1.0]]', "times must not fall"),
        (b'basis = "x"\nfixed_ms = 1.0\nprefill = [[0, 1.0]]\ndecode = [[1, 1.0]]', "counts must rise"),
        (b'basis = "x"\nfixed_ms = 1.0\nprefil = [[1, 1.0]]\ndecode = [[1, 1.0]]', "prefil"),
    ],
)
def test_bad_tables_are_refused_by_name(text: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        parse_toml(text, name="bad.toml")
    assert "bad.toml" in str(caught.value)


def test_the_defaults_basis_owns_up_to_what_is_modelled() -> None:
    assert "modelled" in DEFAULT.basis
