"""What clients are called, and where servers are reached."""

import ipaddress
import re

from fedlora.errors import IdentityError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LONGEST_HOST = 253  # characters of a DNS name
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+)):([0-9]{1,5})")


def check_name(text: str) -> str:
    """`text`, if it can name a client: 1 to 63 of a–z, 0–9 and '-', a letter first. Raises IdentityError otherwise."""
    if not _NAME.fullmatch(text):
        raise IdentityError(
            f"{text[:80]!r} cannot be a client's name: a name has 1 to 63 lower-case letters, digits or '-', and"
            " starts with a letter"
        )
    return text


def check_host(text: str) -> str:
    """A DNS name in lower case, or an IP address in its shortest form, without brackets.

    Raises IdentityError for anything else: wildcards, ports, schemes, letters outside ASCII.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return _dns_name(text)
    if "%" in text:  # the scope means something on one machine only
        raise _no_host(text)
    return str(address)


def _dns_name(text: str) -> str:
    name = text.lower() if text.isascii() else ""
    labels = name.split(".")
    if len(name) > _LONGEST_HOST or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise _no_host(text)
    return name


def _no_host(text: str) -> IdentityError:
    return IdentityError(
        f"{text[:80]!r} is no host: give a DNS name such as server.example.org (in its xn-- form if it has letters"
        " outside ASCII), or an IP address without brackets"
    )


def check_address(text: str) -> tuple[str, int]:
    """Host and port (1–65535) of "host:port"; an IPv6 address stands in brackets. Raises IdentityError otherwise."""
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[3]) < 65536 or (found[1] and ":" not in found[1]):
        raise IdentityError(
            f"{text[:80]!r} is no address: give HOST:PORT with a port from 1 to 65535, such as server.example.org:9443"
            " or [2001:db8::1]:9443"
        )
    return check_host(found[1] or found[2]), int(found[3])
