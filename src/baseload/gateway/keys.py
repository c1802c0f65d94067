"""API keys: made here, shown once, kept as SHA-256."""

import secrets
from collections.abc import Sequence

from baseload.domain.tenant import Key, KeyLimits
from baseload.domain.work import Tier
from baseload.wire.bearer import hash_secret

SECRET_START = "bl-"  # noqa: S105  # the part that every secret begins with


def make_key(
    name: str,
    *,
    now_ns: int,
    is_admin: bool = False,
    models: Sequence[str] = (),
    limits: KeyLimits | None = None,
    tier: Tier = Tier.DEFAULT,
) -> tuple[Key, str]:
    """A new key and its secret (256 random bits). Nobody can read the secret again later."""
    secret = SECRET_START + secrets.token_urlsafe(32)
    key = Key(
        key_id=f"key_{secrets.token_hex(6)}",
        name=name,
        secret_sha256=hash_secret(secret),
        created_ns=now_ns,
        is_admin=is_admin,
        models=tuple(models),
        limits=limits or KeyLimits(),
        tier=tier,
        prefix=secret[: len(SECRET_START) + 4],
    )
    return key, secret
