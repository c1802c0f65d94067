"""What gets how many tokens in the next engine step: pure choices, the same in the engine and in the twin.

Decode first (a running sequence that owes one token always gets it), then prefill in order of arrival until the
step's token budget is spent; new sequences come in while slots, budget and KV blocks last, first come first
served; when blocks run out, of the lowest class the sequence that arrived last gives way. Arrival numbers are
unique, so every tie is broken by them alone.
"""

from collections.abc import Sequence


def share_budget(pending: Sequence[int], *, budget: int) -> list[int]:
    """Tokens for each running sequence. `pending[i]` ≥ 1 is what sequence i, in order of arrival, has to compute.

    Sequences with one pending token (decodes, and the last token of a prompt) get it before any longer prefill;
    prefills then take what is left, oldest first. Nobody's share depends on those that arrived after it, except
    that decodes go before prefills.
    """
    singles = pending.count(1)
    if singles <= budget:
        shares = [1 if tokens == 1 else 0 for tokens in pending]
    else:
        shares = [0] * len(pending)
        for i in [i for i, tokens in enumerate(pending) if tokens == 1][:budget]:
            shares[i] = 1
    left = max(0, budget - singles)
    prefills = [i for i, tokens in enumerate(pending) if tokens > 1] if singles < len(pending) else []
    for i in prefills:
        if not left:
            break
        shares[i] = min(pending[i], left)
        left -= shares[i]
    return shares


def admits(*, blocks_needed: int, blocks_free: int, running: int, max_seqs: int, budget_left: int) -> bool:
    """Whether the oldest waiting sequence may come in now.

    It needs a slot, a token of budget, blocks for all the tokens it has so far, and, unless it would be alone, one
    block of slack per running sequence: else the next decodes would throw it out again.
    """
    if running >= max_seqs or budget_left <= 0:
        return False
    return blocks_needed + running <= blocks_free if running else blocks_needed <= blocks_free


def choose_victim(running: Sequence[tuple[int, int]]) -> int:
    """Index of the running sequence that gives its blocks back, of (standing, arrival) each.

    The lowest class gives way first, and within it the latest arrival.
    """
    assert running
    return min(range(len(running)), key=lambda at: (running[at][0], -running[at][1]))
