"""The KV cache as numbered blocks: reference counts, automatic prefix caching by block hash, LRU eviction.

A block is *held* (reference count ≥ 1), *cached* (count 0, but its content is known by hash and may be taken again)
or *free*. Cached blocks are as good as free: the one idle longest is evicted when free ones run out. The arrays
themselves are the engine's; here are only numbers.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from struct import pack

_HASH_BYTES = 16  # wide enough that nobody finds a collision to read another tenant's cache


def root_hash(salt: str = "") -> int:
    """The parent of a sequence's first block. Sequences under different salts never share blocks."""
    return int.from_bytes(blake2b(salt.encode(), digest_size=_HASH_BYTES, person=b"baseload-kv").digest(), "little")


def block_hash(parent: int, tokens: Sequence[int]) -> int:
    """Hash of a full block after `parent`: equal exactly for equal token prefixes (and salts), in every process."""
    data = parent.to_bytes(_HASH_BYTES, "little") + pack(f"<{len(tokens)}I", *tokens)
    return int.from_bytes(blake2b(data, digest_size=_HASH_BYTES).digest(), "little")


class BlockPool:
    """The blocks 0 … num_blocks - 1 of `block_tokens` tokens each.

    Only blocks that are known by their content can have several holders, so only theirs are counted; of all others
    each is free or somebody's alone, and they come and go by slices.
    """

    def __init__(self, num_blocks: int, *, block_tokens: int) -> None:
        assert num_blocks > 0
        assert block_tokens > 0
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._hash_of: list[int | None] = []  # of the blocks ever used: the first so many
        self._refs: list[int] = []  # of the same: how many hold it; 0 of those not known by their content
        self._by_hash: dict[int, int] = {}
        self._free: list[int] = []  # used before and given back: a stack; below it lie the never used, lowest on top
        self._cached: OrderedDict[int, None] = OrderedDict()  # unreferenced blocks with a hash, idle longest first
        self.evictions = 0

    @property
    def available(self) -> int:
        """Blocks that can be allocated now."""
        return self.num_blocks - len(self._refs) + len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """Share of the blocks that are held, 0 to 1."""
        return 1.0 - self.available / self.num_blocks

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def match(self, hashes: Sequence[int]) -> list[int]:
        """The blocks of the longest known prefix of `hashes`. They are not taken yet."""
        found: list[int] = []
        for value in hashes:
            block = self._by_hash.get(value)
            if block is None:
                break
            found.append(block)
        return found

    def count_held(self, blocks: Sequence[int]) -> int:
        """How many of these matched blocks somebody holds, so that taking them costs nothing."""
        return sum([1 for block in blocks if self._refs[block]]) if blocks else 0

    def take(self, blocks: Sequence[int]) -> None:
        """Hold these matched blocks once more."""
        for block in blocks:
            if not self._refs[block]:
                del self._cached[block]
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Hold `count` blocks of unknown content, evicting cached ones where needed. `available` must suffice."""
        assert count <= self.available, "the caller checks `available` first"
        free, used = self._free, len(self._refs)
        taken: list[int] = []
        if free and count:
            taken = free[: -count - 1 : -1]
            del free[-count:]
        fresh = min(count - len(taken), self.num_blocks - used)
        if fresh > 0:
            taken += range(used, used + fresh)
            self._refs += [0] * fresh
            self._hash_of += [None] * fresh
        while len(taken) < count:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self.evictions += 1
            taken.append(block)
        return taken

    def publish(self, block: int, value: int) -> None:
        """The held block is now full and computed, and may be found by this hash."""
        if value not in self._by_hash and self._hash_of[block] is None:  # computed twice at once: keep the first
            self._by_hash[value] = block
            self._hash_of[block] = value
            self._refs[block] = 1

    def release(self, blocks: Sequence[int]) -> None:
        """Hold these blocks once less; give them in sequence order, so that a prefix outlives what follows it."""
        free, cached = self._free, self._cached
        if not self._by_hash:  # nothing is known by its content, so nothing is shared
            free += reversed(blocks)
        else:
            hash_of, refs = self._hash_of, self._refs
            for block in reversed(blocks):
                if hash_of[block] is None:
                    free.append(block)
                    continue
                left = refs[block] - 1
                assert left >= 0, "released more often than held"
                refs[block] = left
                if not left:
                    cached[block] = None
        assert len(free) + len(cached) <= len(self._refs), "released more often than held"

    def forget_cached(self) -> None:
        """Forget every block's content (the arrays were lost, or the weights changed). Nobody may hold any block."""
        assert len(self._free) + len(self._cached) == len(self._refs), "blocks are still held"
        for block in list(self._cached):
            self._forget(block)
        self._hash_of, self._refs, self._free = [], [], []
        self._cached = OrderedDict()

    def check(self, holders: Mapping[int, int] | None = None) -> None:
        """Assert every invariant; for tests and idle moments. O(blocks ever used). `holders`: of each held block, how
        many hold it, where that is known."""
        free, refs, cached = dict.fromkeys(self._free), self._refs, self._cached
        assert len(refs) == len(self._hash_of) <= self.num_blocks
        assert len(free) == len(self._free), "a block is free twice"
        assert all(self._hash_of[block] is None and not refs[block] for block in free)
        known = {block: value for block, value in enumerate(self._hash_of) if value is not None}
        assert {block: value for value, block in self._by_hash.items()} == known
        assert dict.fromkeys(cached) == {block: None for block in known if not refs[block]}
        assert all(block in known or not count for block, count in enumerate(refs))
        if holders is None:
            return
        assert len(free) + len(cached) + len(holders) == len(refs), "a block is lost or counted twice"
        assert not any(block in free or block in cached for block in holders), "a held block is given away"
        shared = {block: refs[block] for block in known if refs[block]}
        assert all(shared.get(block, 1) == count for block, count in holders.items()), "a block leaked, or is shared"

    def _forget(self, block: int) -> None:
        value = self._hash_of[block]
        assert value is not None
        del self._by_hash[value]
        self._hash_of[block] = None
