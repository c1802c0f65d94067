import subprocess
import sys

import pytest

from baseload.core.blocks import BlockPool, block_hash, root_hash


def chain(count: int, salt: str = "") -> list[int]:
    hashes: list[int] = []
    for i in range(count):
        hashes.append(block_hash(hashes[-1] if i else root_hash(salt), (i, i + 1)))
    return hashes


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from baseload.core.blocks import block_hash, root_hash;"
        "print(block_hash(block_hash(root_hash('s'), (1, 2)), (3, 4)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert int(other.stdout) == block_hash(block_hash(root_hash("s"), (1, 2)), (3, 4))


def test_a_hash_depends_on_parent_tokens_and_salt() -> None:
    root = root_hash()
    values = [
        block_hash(root, (1, 2)),
        block_hash(root, (2, 1)),
        block_hash(root, (1, 2, 0)),
        block_hash(block_hash(root, (1, 2)), (1, 2)),
        block_hash(root_hash("tenant"), (1, 2)),
    ]
    assert len(set(values)) == len(values)


def test_a_released_prefix_is_found_again() -> None:
    pool = BlockPool(4, block_tokens=2)
    blocks = pool.allocate(3)
    for block, value in zip(blocks, chain(3), strict=True):
        pool.publish(block, value)
    pool.release(blocks)
    assert pool.usage == 0.0
    assert pool.match(chain(3)) == blocks
    assert pool.match([*chain(1), 12345]) == blocks[:1]
    assert pool.match(chain(3, "other salt")) == []
    pool.take(blocks[:2])
    assert pool.available == 2
    assert pool.count_held(blocks) == 2
    pool.check()


def test_the_longest_unused_is_evicted_and_a_prefix_outlives_its_continuation() -> None:
    pool = BlockPool(4, block_tokens=2)
    old, new = chain(2, "old"), chain(2, "new")
    for hashes in (old, new):
        blocks = pool.allocate(2)
        for block, value in zip(blocks, hashes, strict=True):
            pool.publish(block, value)
        pool.release(blocks)
    pool.allocate(1)
    assert pool.match(old) == pool.match(old[:1]) != []
    assert len(pool.match(new)) == 2
    pool.allocate(1)
    assert pool.match(old) == []
    assert pool.evictions == 2
    pool.check()


def test_shared_blocks_come_back_only_after_the_last_holder() -> None:
    pool = BlockPool(2, block_tokens=2)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], 5)
    pool.take(blocks)
    pool.release(blocks)
    assert pool.available == 1
    pool.release(blocks)
    assert pool.available == 2
    pool.check()


def test_the_first_of_two_equal_blocks_keeps_the_hash() -> None:
    pool = BlockPool(3, block_tokens=2)
    first, second = pool.allocate(2)
    pool.publish(first, 5)
    pool.publish(second, 5)
    assert pool.match([5]) == [first]
    pool.release([first, second])
    pool.check()


def test_a_block_released_more_often_than_held_is_noticed() -> None:
    unknown, known = BlockPool(4, block_tokens=2), BlockPool(4, block_tokens=2)
    blocks = unknown.allocate(2)
    unknown.release(blocks)
    with pytest.raises(AssertionError, match="more often"):
        unknown.release(blocks)
    blocks = known.allocate(1)
    known.publish(blocks[0], 5)
    known.release(blocks)
    with pytest.raises(AssertionError, match="more often"):
        known.release(blocks)


def test_holders_that_differ_from_what_is_known_are_noticed() -> None:
    pool = BlockPool(4, block_tokens=2)
    first, second = pool.allocate(2)
    pool.publish(first, 5)
    pool.take([first])
    pool.check({first: 2, second: 1})
    for wrong in ({first: 1, second: 1}, {first: 2}, {first: 2, second: 2}, {first: 2, second: 1, 3: 1}):
        with pytest.raises(AssertionError):
            pool.check(wrong)
