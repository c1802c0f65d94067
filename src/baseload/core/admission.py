"""The admission machine: keys, what each may use, and how much of it is in use. One check before every route."""

from msgspec import Struct

from baseload.domain.errors import Reason, Refusal
from baseload.domain.tenant import Allowance, Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Request
from baseload.policy.admission import left, settle, take


class Tab(Struct):
    """One key and its use now."""

    key: Key
    in_flight: int = 0
    requests_full_ns: int = 0  # when its bucket of requests is full again
    tokens_full_ns: int = 0
    revoked: bool = False


class AdmissionState(Struct):
    """All of the machine's state."""

    tabs: dict[str, Tab] = {}


class AdmissionMachine:
    """Admits requests against their keys' limits. `leave` must follow each admitted request exactly once."""

    def __init__(self, state: AdmissionState) -> None:
        self.state = state
        self._by_hash = {tab.key.secret_sha256: tab.key for tab in state.tabs.values() if not tab.revoked}

    def put_key(self, key: Key) -> None:
        """A key was created, or its limits changed."""
        tab = self.state.tabs.get(key.key_id)
        if tab is None:
            self.state.tabs[key.key_id] = Tab(key=key)
        else:
            self._by_hash.pop(tab.key.secret_sha256, None)
            tab.key, tab.revoked = key, False
        self._by_hash[key.secret_sha256] = key

    def revoke_key(self, key_id: str) -> None:
        """A key was revoked; what it runs finishes."""
        tab = self.state.tabs.get(key_id)
        if tab is None or tab.revoked:
            return
        tab.revoked = True
        self._by_hash.pop(tab.key.secret_sha256, None)
        if not tab.in_flight:
            del self.state.tabs[key_id]

    def key_by_hash(self, secret_sha256: str) -> Key | None:
        """The key with this hash, unless revoked."""
        return self._by_hash.get(secret_sha256)

    def keys(self) -> list[Key]:
        """All keys that are not revoked, in the order of their creation."""
        return [tab.key for tab in self.state.tabs.values() if not tab.revoked]

    def allowance(self, key_id: str, now_ns: int) -> Allowance:
        """What is left of the key's per-minute limits."""
        tab = self.state.tabs.get(key_id)
        if tab is None:
            return Allowance()
        limits = tab.key.limits
        requests, requests_reset_ns = left(tab.requests_full_ns, now_ns=now_ns, per_minute=limits.requests_per_minute)
        tokens, tokens_reset_ns = left(tab.tokens_full_ns, now_ns=now_ns, per_minute=limits.tokens_per_minute)
        return Allowance(requests, requests_reset_ns, tokens, tokens_reset_ns)

    def enter(self, request: Request, now_ns: int) -> Refusal | None:
        """Admit the request (and count it), or say why not."""
        tab = self.state.tabs.get(request.key_id)
        if tab is None or tab.revoked:
            return Refusal(Reason.WRONG_KEY, f"The key {request.key_id or '(none)'} does not exist or was revoked.")
        key = tab.key
        if key.models and request.model not in key.models:
            return Refusal(Reason.FORBIDDEN, f"The key {key.name!r} may not use the model {request.model!r}.")
        if request.tier is not key.tier and request.tier.rank > key.tier.rank:
            return Refusal(
                Reason.FORBIDDEN, f"The key {key.name!r} may not ask for the class {request.tier.value!r}."
            )
        limits = key.limits
        if limits.max_in_flight and tab.in_flight >= limits.max_in_flight:
            return Refusal(
                Reason.TOO_MANY_IN_FLIGHT,
                f"The key {key.name!r} already has {tab.in_flight} requests in flight, its limit.",
                retry_after_ns=NS_PER_S,
            )
        requests_full_ns, tokens_full_ns = tab.requests_full_ns, tab.tokens_full_ns
        if limits.requests_per_minute:
            requests_full_ns, wait_ns = take(
                requests_full_ns, now_ns=now_ns, amount=1, per_minute=limits.requests_per_minute
            )
            if wait_ns:
                return _limited(key, f"{limits.requests_per_minute} requests", wait_ns)
        if limits.tokens_per_minute:
            tokens_full_ns, wait_ns = take(
                tokens_full_ns, now_ns=now_ns, amount=reserved_tokens(request), per_minute=limits.tokens_per_minute
            )
            if wait_ns:
                return _limited(key, f"{limits.tokens_per_minute} tokens", wait_ns)
        tab.requests_full_ns, tab.tokens_full_ns = requests_full_ns, tokens_full_ns
        tab.in_flight += 1
        return None

    def leave(self, request: Request, used_tokens: int) -> None:
        """An admitted request ended, having used so many tokens; the rest of its reservation is given back."""
        tab = self.state.tabs[request.key_id]
        assert tab.in_flight > 0
        tab.in_flight -= 1
        per_minute = tab.key.limits.tokens_per_minute
        if per_minute:
            tab.tokens_full_ns = settle(
                tab.tokens_full_ns, reserved=reserved_tokens(request), used=used_tokens, per_minute=per_minute
            )
        if tab.revoked and not tab.in_flight:
            del self.state.tabs[request.key_id]


def reserved_tokens(request: Request) -> int:
    """The tokens set aside for a request until it ends."""
    return request.prompt_tokens_estimate + request.max_tokens


def _limited(key: Key, limit: str, wait_ns: int) -> Refusal:
    return Refusal(
        Reason.RATE_LIMITED,
        f"The key {key.name!r} has used its {limit} per minute.",
        hint=f"Try again in {wait_ns / NS_PER_S:.1f} s.",
        retry_after_ns=wait_ns,
    )
