"""Who asks: a key, its limits, its rights."""

from msgspec import Struct

from baseload.domain.work import Tier


class KeyLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on one key; 0 means none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0  # prompt estimate plus max_tokens at admission; settled on completion
    max_in_flight: int = 0


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """An API key as stored: the SHA-256 of the secret (32 random bytes, so no salt or stretching is needed)."""

    key_id: str  # "key_" + 12 hex digits; safe to show and log
    name: str
    secret_sha256: str  # 64 hex digits
    created_ns: int
    is_admin: bool = False
    models: tuple[str, ...] = ()  # empty: every model
    limits: KeyLimits = KeyLimits()
    prefix: str = ""  # the first characters of the secret, to recognise it by ("bl-Ab3x")
    tier: Tier = Tier.DEFAULT  # the highest class of service it may ask for, and what it gets where it asks for none


class ShownKey(Struct, frozen=True):
    """A key as it may be shown: without the hash of its secret."""

    key_id: str
    name: str
    prefix: str
    created_ns: int
    is_admin: bool
    models: tuple[str, ...]
    limits: KeyLimits
    tier: Tier = Tier.DEFAULT

    @staticmethod
    def of(key: Key) -> "ShownKey":
        """What may be shown of this key."""
        return ShownKey(
            key.key_id, key.name, key.prefix, key.created_ns, key.is_admin, key.models, key.limits, key.tier
        )


class Allowance(Struct, frozen=True):
    """What is left of a key's per-minute limits now, and in how long each is whole again. Zeros where it has none."""

    requests: int = 0
    requests_reset_ns: int = 0
    tokens: int = 0
    tokens_reset_ns: int = 0
