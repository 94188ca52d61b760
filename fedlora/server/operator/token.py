"""The operator's token: a file beside the server's other secrets. Who can read it, commands the server."""

import os
import re
import secrets
import stat
from pathlib import Path

from fedlora.errors import IdentityError
from fedlora.server.durable import explained, sync_folder

FILE = "operator.token"
"""The name of the file in a server's home."""

_BYTES = 32
_FORM = re.compile(r"[A-Za-z0-9_-]{43}")


def make_token(path: Path) -> str:
    """The token in the file `path`; the file is made (mode 0600, 256 random bits) if it is not there.

    Of two processes that make it at once, both get the one that came first. Raises IdentityError as `read_token` does,
    StoreError if the file cannot be written.
    """
    if not path.exists():
        with explained("write the operator's token to", path):
            _write_new(path, secrets.token_urlsafe(_BYTES))
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in the file `path`. Raises IdentityError: no such file, no token in it, or others may read it."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise IdentityError(
            f"the operator's token cannot be read from {path} ({reason}): `fedlora server run` makes it; run this as"
            " the user who runs the server, or set FEDLORA_TOKEN"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise IdentityError(
            f"other users may read the operator's token {path} (mode {stat.S_IMODE(mode):04o}): delete it, start the"
            " server again for a new one, and leave its mode at 0600"
        )
    if not check_form(text):
        raise IdentityError(f"{path} holds no operator's token: delete it and start the server again for a new one")
    return text


def check_form(token: str) -> bool:
    """Whether `token` looks like one that `make_token` makes."""
    return _FORM.fullmatch(token) is not None


def _write_new(path: Path, token: str) -> None:
    """A link, unlike a rename, does not replace what another process has put there."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{token}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
