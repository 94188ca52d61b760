"""Addresses of servers as owners write them: "host:port"."""

from fedlora.errors import IdentityError
from fedlora.identity.names import check_address


def normal_address(text: str) -> str:
    """`text` in its one form, so that two spellings of an address are equal: see `check_address`.

    Raises ValueError, for pydantic, unless it is "host:port" (an IPv6 address in brackets, a port from 1 to 65535).
    """
    try:
        host, port = check_address(text)
    except IdentityError as error:
        raise ValueError(f"must be 'host:port', e.g. 'fl.example.org:8443': {error}") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
