"""One sequence in the batcher: what it has, what it holds, and where it stands among the others."""

from baseload.core.batch import Finished, FinishedBy, SeqSpec
from baseload.core.blocks import block_hash
from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.policy.pacing import standing


class Sequenced:
    """Mutable, and the batcher's own. Token positions count from the prompt's first."""

    __slots__ = (
        "arrival", "arrived_ns", "blocks", "cached", "computed", "ends_at", "first_token_ns", "group", "guesses",
        "hashes", "lifts", "limit", "pace", "parent", "prompt", "published", "seq_id", "started_ns", "stop_at",
        "tokens", "total",
    )  # fmt: skip

    def __init__(self, spec: SeqSpec, *, arrival: int, now_ns: int, limit: int) -> None:
        self.seq_id = spec.seq_id
        self.arrival = arrival
        self.group = spec.group
        self.pace = spec.pace
        self.lifts = 0  # times that it gave way to a higher class
        self.guesses: list[int] = []  # of the tokens after `total`, for the next step only
        self.tokens = None if spec.tokens is None else list(spec.tokens)
        self.prompt = spec.prompt_tokens
        self.total = spec.prompt_tokens  # prompt and generated
        self.limit = limit  # total at which it ends by length
        self.stop_at = spec.prompt_tokens + spec.stop_after if spec.stop_after else limit + 1
        self.ends_at = min(self.stop_at, limit)
        self.computed = 0  # tokens whose KV is in the blocks
        self.cached = -1  # prompt tokens found in the prefix cache when first admitted; -1: not admitted yet
        self.blocks: list[int] = []
        self.hashes: list[int] = []  # of the full blocks, as far as known
        self.parent: int | None = None  # root hash; None: takes no part in prefix caching
        self.published = 0
        self.arrived_ns = now_ns
        self.started_ns = -1
        self.first_token_ns = -1

    def standing(self, now_ns: int) -> int:
        """Whom it gives way to, once it is in; see policy/pacing.py."""
        return standing(rank=self.pace.rank, lifts=self.lifts, waited_ns=now_ns - self.arrived_ns)

    def claim(self, now_ns: int) -> int:
        """How it stands while it waits: what it gave way to goes before it."""
        return standing(rank=self.pace.rank, lifts=0, waited_ns=now_ns - self.arrived_ns)

    @property
    def due_ns(self) -> int:
        """When its first token is due."""
        return self.arrived_ns + self.pace.patience_ns

    @property
    def promise(self) -> tuple[int, int, int]:
        """When its first token came, how many it has since, and what each may take: what its pace is kept by."""
        return self.first_token_ns, self.total - self.prompt, self.pace.tpot_ns

    def know_hashes(self, blocks: int, block_tokens: int) -> None:
        """Know the hashes of the first `blocks` blocks, where the tokens are known."""
        if self.parent is None or self.tokens is None:
            return
        for i in range(len(self.hashes), blocks):
            parent = self.hashes[-1] if i else self.parent
            self.hashes.append(block_hash(parent, self.tokens[i * block_tokens : (i + 1) * block_tokens]))

    def finished(self, by: FinishedBy, now_ns: int) -> Finished:
        """What it used, now that it ends."""
        started = self.started_ns if self.started_ns >= 0 else now_ns
        first = self.first_token_ns if self.first_token_ns >= 0 else now_ns
        phases = PhaseTimes(started - self.arrived_ns, first - started, now_ns - first)
        counts = TokenCounts(prompt=self.prompt, cached_in=max(0, self.cached), completion=self.total - self.prompt)
        return Finished(self.seq_id, by, counts, phases)
