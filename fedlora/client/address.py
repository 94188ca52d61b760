"""Addresses of servers as owners write them: "host:port"."""

import re

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")


def normal_address(text: str) -> str:
    """`text` with its host in lower case and its port without leading zeros: two spellings of an address are equal.

    Raises ValueError unless it is "host:port" (an IPv6 address in brackets, a port from 1 to 65535).
    """
    found = _ADDRESS.fullmatch(text)
    if not found or not 1 <= int(found["port"]) <= 65535:
        raise ValueError("must be 'host:port' with a port from 1 to 65535, e.g. 'fl.example.org:8443'")
    return f"{found['host'].lower()}:{int(found['port'])}"
