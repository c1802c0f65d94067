"""API keys: made here, shown once, kept as SHA-256."""

import secrets
from collections.abc import Sequence
from hashlib import sha256

from baseload.core.ports import Control
from baseload.domain.errors import Reason, Refusal
from baseload.domain.tenant import Key, KeyLimits

SECRET_START = "bl-"  # noqa: S105  # the part that every secret begins with


def make_key(
    name: str,
    *,
    now_ns: int,
    is_admin: bool = False,
    models: Sequence[str] = (),
    limits: KeyLimits | None = None,
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
        prefix=secret[: len(SECRET_START) + 4],
    )
    return key, secret


def hash_secret(secret: str) -> str:
    """The form in which a secret is kept."""
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def authenticate(control: Control, headers: dict[str, str]) -> Key:
    """The key of the request's bearer secret; raises `Refusal`. The secret is neither kept nor logged."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        hint = "Send the header 'Authorization: Bearer …' with one of your keys."
        raise Refusal(Reason.NO_KEY, "No API key was given.", hint=hint)
    key = control.key_by_hash(hash_secret(secret.strip()))
    if key is None:
        hint = "'baseload keys list' shows the keys there are."
        raise Refusal(Reason.WRONG_KEY, "This API key does not exist or was revoked.", hint=hint)
    return key


def authenticate_admin(control: Control, headers: dict[str, str]) -> Key:
    """The same, for administration; raises `Refusal`."""
    key = authenticate(control, headers)
    if not key.is_admin:
        raise Refusal(Reason.FORBIDDEN, f"The key '{key.name}' may not administer.", hint="Use an admin key.")
    return key
