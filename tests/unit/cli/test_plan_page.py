"""The page of a plan: labels that never lie on one another, units that people read, sums folded by reason."""

import re

from hypothesis import given
from hypothesis import strategies as st

from baseload.cli.plan_page import table
from baseload.cli.plan_plot import BOTTOM, DOT, HEIGHT, LEFT, WIDTH, bars_svg, place
from baseload.cli.plan_words import by_reason, power
from baseload.policy.plan.answer import NotJudged

POINTS = st.lists(
    st.tuples(
        st.floats(LEFT + 1, WIDTH - 21), st.floats(31, HEIGHT - BOTTOM - 1), st.sampled_from(["h100_sxm", "l4"])
    ),
    max_size=40,
)


@given(POINTS)
def test_no_label_lies_on_another_or_on_a_point_or_outside(points: list[tuple[float, float, str]]) -> None:
    placed = place(points)
    for i, label in enumerate(placed):
        left, top, right, bottom = label.box
        assert left >= LEFT
        assert right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT - BOTTOM
        for other in placed[i + 1 :]:
            a, b = label.box, other.box
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        for x, y, _ in points:
            assert x + DOT <= left or right <= x - DOT or y + DOT <= top or bottom <= y - DOT


def test_a_point_alone_has_its_label() -> None:
    assert [label.text for label in place([(300.0, 200.0, "h100_sxm")])] == ["h100_sxm"]


def test_power_is_told_in_the_unit_that_fits() -> None:
    assert [power(mw) for mw in (0.0000724, 0.0015, 0.25, 5000.0)] == ["72 W", "1.5 kW", "250.0 kW", "5,000.0 MW"]


def test_causes_are_counted_by_their_kind() -> None:
    rows = [
        NotJudged("m", "l4", "a", "weights need 1.3 times the memory of its largest replica"),
        NotJudged("m", "t4", "a", "weights need 2.9 times the memory of its largest replica"),
        NotJudged("n", "l4", "a", "weights need 4.0 times the memory of its largest replica"),
        NotJudged("m", "gaudi3", "a", "cannot be judged: bf16_tflops missing"),
    ]
    assert by_reason(rows) == ["2 × weights do not fit: l4, t4", "1 × bf16_tflops missing: gaudi3"]


def test_each_bar_has_a_line_of_its_own() -> None:
    drawn = bars_svg([("a very long label of an accelerator at a site with a long name", 1.0), ("b", 2.0)])
    heights = [int(y) for y in re.findall(r'<text x="0" y="(\d+)"', drawn)]
    assert len(heights) == 2
    assert heights[1] - heights[0] > 30


def test_tables_scroll_by_themselves_and_escape() -> None:
    drawn = table(("a", "b"), [("<x>", "1")], wide=1)
    assert drawn.startswith('<div class="wrap">')
    assert "&lt;x&gt;" in drawn
    assert "<td class=w>1</td>" in drawn
