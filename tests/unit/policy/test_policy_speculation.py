"""Guesses are made where they pay, by belief and by cost."""

from baseload.policy.speculation import (
    believed,
    first_belief,
    guesses,
    pays_together,
    probe_after,
    saved_ns,
    step_costs,
)


def flat(tokens: int, decode_pairs: int, prefill_pairs: int) -> int:
    """A step that reads its weights: the same whatever the tokens."""
    return 1000 + tokens


def steep(tokens: int, decode_pairs: int, prefill_pairs: int) -> int:
    """A step that is all arithmetic."""
    return 1000 * tokens


def test_many_guesses_where_they_are_cheap_and_right() -> None:
    assert guesses(belief=0.95, costs_ns=step_costs(most=6, rows=1, pairs=100, predict=flat)) == 6
    assert guesses(belief=0.5, costs_ns=step_costs(most=6, rows=1, pairs=100, predict=flat)) >= 3


def test_no_guess_where_it_does_not_pay() -> None:
    assert guesses(belief=0.9, costs_ns=step_costs(most=6, rows=8, pairs=100, predict=steep)) == 0
    assert guesses(belief=0.01, costs_ns=step_costs(most=6, rows=1, pairs=100, predict=flat)) == 0
    assert guesses(belief=0.6, costs_ns=step_costs(most=6, rows=1, pairs=100, predict=flat, guess_ns=2000)) == 0
    assert guesses(belief=1.0, costs_ns=step_costs(most=0, rows=1, pairs=100, predict=flat)) == 0


def test_one_guess_finds_out_what_is_not_known() -> None:
    assert guesses(belief=0.6, costs_ns=[0] * 7) == 1
    assert guesses(belief=0.6, costs_ns=[0]) == 0


def test_a_guess_is_tried_more_rarely_where_even_a_right_one_would_not_pay() -> None:
    assert probe_after([100, 110, 120]) < probe_after([100, 900, 1700])


def test_belief_follows_what_was_tried() -> None:
    assert believed(0.6, tried=0, right=0) == 0.6
    assert believed(0.6, tried=4, right=4) > 0.6 > believed(0.6, tried=4, right=0) > 0.4
    belief = 0.1
    for _ in range(60):
        belief = believed(belief, tried=4, right=3)
    assert 0.7 < belief < 0.8


def test_the_first_tries_say_most() -> None:
    assert believed(0.6, tried=1, right=0, before=0) < believed(0.6, tried=1, right=0, before=20)
    belief = 0.6
    for tries in range(6):
        belief = believed(belief, tried=1, right=0, before=tries)
    assert belief < 0.2, "six wrong ones are enough"
    assert first_belief(0.6, last=0.1) < 0.6


def test_what_is_not_known_well_is_hoped_to_be_cheap() -> None:
    known = step_costs(most=2, rows=4, pairs=100, predict=steep)
    hoped = step_costs(most=2, rows=4, pairs=100, predict=steep, hope=lambda *_: 0)
    assert hoped == [known[0]] * 3, "but never cheaper than a step without guesses"


def test_what_guesses_save_is_what_they_bring_less_what_they_cost() -> None:
    assert saved_ns(belief=1.0, costs_ns=[100, 120], count=1, rows=2) == 40
    assert saved_ns(belief=0.0, costs_ns=[100, 120], count=1, rows=2) == -10


def test_one_draft_step_must_be_worth_it_for_all_who_ask_together() -> None:
    assert pays_together(gains=[0.9] * 8, alone_ns=100, rows=8, more_ns=60)
    assert not pays_together(gains=[0.9], alone_ns=100, rows=8, more_ns=60)
    assert not pays_together(gains=[0.9] * 8, alone_ns=100, rows=8, more_ns=88), "a gain so small is noise"
