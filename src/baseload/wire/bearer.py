"""The bearer secret of a request, and the key it belongs to: for the API and the dashboard alike."""

from hashlib import sha256

from baseload.core.ports import Control
from baseload.domain.errors import Reason, Refusal
from baseload.domain.tenant import Key


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


def hash_secret(secret: str) -> str:
    """The form in which a secret is kept."""
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
