"""Workers that somebody else runs: their API keys, read here and nowhere else, and whether they can be asked.

A secret is named by `remote.secret`; the name is journaled and shown, the secret is neither. It is looked for in the
environment of `baseload up` (BASELOAD_SECRET_NAME) and then in the data folder (secrets/NAME, readable by its owner
alone). An administrator over HTTP can therefore send a worker no secret but those laid out for that.
"""

import asyncio
import stat
from collections.abc import Mapping
from pathlib import Path

from baseload.cli.model_check import check_model
from baseload.cli.settings import LONGEST_SECRET, checked_secret
from baseload.domain.errors import NetError, SettingsError
from baseload.domain.model import ModelSpec
from baseload.net.connection import tls_context

FOLDER = "secrets"


class Secrets:
    """Secrets by name. Files are read when they change, so that one can be exchanged while all runs."""

    def __init__(self, folder: Path, given: Mapping[str, str]) -> None:
        self._folder = folder
        self._given = given  # of the environment, by name in capitals
        self._read: dict[Path, tuple[int, str]] = {}  # when it was changed, and what it holds; one for each file used

    def line(self, name: str) -> str:
        """The secret of this name as a header line; raises SettingsError, which does not quote it."""
        secret = self._given.get(name.upper()) or self._of_file(name)
        return f"authorization: Bearer {secret}\r\n"

    def _of_file(self, name: str) -> str:
        path = self._folder / name
        try:
            found = path.stat()
            known = self._read.get(path)
            if known is not None and known[0] == found.st_mtime_ns:
                return known[1]
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SettingsError(f"The secret in {path} can be read by others.", hint=f"chmod 600 {path}")
            text = path.read_bytes()[: LONGEST_SECRET + 1].decode("ascii", "replace")
        except FileNotFoundError:
            hint = f"Set BASELOAD_SECRET_{name.upper()} for `baseload up`, or write it to {path}."
            raise SettingsError(f"There is no secret {name}.", hint=hint) from None
        except OSError as error:
            raise SettingsError(f"The secret in {path} cannot be read: {error.strerror}.") from None
        secret = checked_secret(text, where=str(path))
        self._read[path] = (found.st_mtime_ns, secret)
        return secret


async def check_remote(spec: ModelSpec, secrets: Secrets) -> ModelSpec:
    """`check_model`, and of a worker at a URL whether its secret and its certificates are there. BaseloadError."""
    if spec.is_remote and spec.remote.secret:
        secrets.line(spec.remote.secret)
    if spec.is_remote and spec.remote.ca_file:
        try:
            await asyncio.to_thread(tls_context, spec.remote.ca_file)
        except NetError as error:
            raise SettingsError(error.message, hint=error.hint) from None
    return await check_model(spec)
