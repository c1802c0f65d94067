from hypothesis import given
from hypothesis import strategies as st

from baseload.policy.batching import admits, choose_victim, share_budget


def test_decodes_go_before_prefills_and_prefills_by_arrival() -> None:
    assert share_budget([100, 1, 40, 1], budget=64) == [62, 1, 0, 1]
    assert share_budget([10, 1, 40, 1], budget=64) == [10, 1, 40, 1]
    assert share_budget([10, 1, 60, 1], budget=64) == [10, 1, 52, 1]


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 100))
def test_the_budget_is_kept_and_used_up(pending: list[int], budget: int) -> None:
    shares = share_budget(pending, budget=budget)
    assert all(0 <= share <= tokens for share, tokens in zip(shares, pending, strict=True))
    assert sum(shares) == min(budget, sum(pending))
    decodes = [share for share, tokens in zip(shares, pending, strict=True) if tokens == 1]
    assert sum(decodes) == min(budget, len(decodes))


def test_coming_in_needs_a_slot_budget_and_blocks_with_slack() -> None:
    def ask(**changes: int) -> bool:
        view = {"blocks_needed": 4, "blocks_free": 6, "running": 2, "max_seqs": 3, "budget_left": 1}
        return admits(**(view | changes))

    assert ask()
    assert not ask(running=3, max_seqs=3)
    assert not ask(budget_left=0)
    assert not ask(blocks_free=5)
    assert ask(blocks_free=4, running=0)


def test_the_latest_arrival_gives_way() -> None:
    assert choose_victim([(1, 3), (1, 9), (1, 5)]) == 1
    assert choose_victim([(2, 3), (1, 4), (2, 9), (1, 7)]) == 3, "the lowest class first"
