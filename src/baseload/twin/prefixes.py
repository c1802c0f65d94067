"""What prompts have in common, as numbers: for the replicas' KV cache block by block, and for the router as the
gateway tells it (hashes of the first 256, 512, … 32,768 bytes, taken for four bytes a token)."""

from baseload.twin.traces import HASHED_TOKENS
from baseload.twin.workload import Arrival

ROUTER_LENGTHS = tuple(64 << i for i in range(8))  # tokens
_COMMON = 1_000_003
_BLOCKS = 1 << 20  # blocks a text may have


def kv_hashes(arrival: Arrival, block_tokens: int) -> tuple[int, ...]:
    """One number per full block of prompt and answer, as far as others may have it too."""
    if arrival.blocks:
        per = max(1, HASHED_TOKENS // block_tokens)
        most = arrival.prompt_tokens // block_tokens
        return tuple(value * per + i for value in arrival.blocks for i in range(per))[:most]
    common = arrival.prefix_tokens // block_tokens if arrival.prefix >= 0 else 0
    hashes = tuple((arrival.prefix + 1) * _COMMON + i for i in range(common))
    if arrival.thread < 0:
        return hashes
    full = (arrival.prompt_tokens + arrival.output_tokens) // block_tokens
    start = -(arrival.thread + 1) * _BLOCKS  # below zero: no common prefix has such a number
    return hashes + tuple(start - i for i in range(common, full))


def router_hashes(arrival: Arrival) -> tuple[int, ...]:
    """Growing beginnings of the prompt, at most 8."""
    if arrival.blocks:
        most = len(arrival.blocks)
        reach = [
            (length, (length - 1) // HASHED_TOKENS) for length in ROUTER_LENGTHS if length <= arrival.prompt_tokens
        ]
        return tuple((arrival.blocks[at] + 1) * 16_384 + length for length, at in reach if at < most)
    if arrival.thread < 0:
        return () if arrival.prefix < 0 else (_COMMON * (arrival.prefix + 1),)
    hashes = []
    for length in ROUTER_LENGTHS:
        if length <= arrival.prefix_tokens:
            hashes.append((arrival.prefix + 1) * _COMMON + length)
        elif length <= arrival.prompt_tokens:
            hashes.append((1 << 62) - (arrival.thread + 1) * 16_384 - length)
    return tuple(hashes)
