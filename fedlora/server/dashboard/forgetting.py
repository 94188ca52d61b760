"""What an entry of the audit log says once a client's name is out of it."""

import re
from collections.abc import Mapping
from typing import Any

from fedlora.server.dashboard.people import Role

GONE = "(erased)"
"""What stands where the name of a client stood that had itself erased."""

_BEFORE, _AFTER = r"(?<![a-z0-9-])", r"(?![a-z0-9-])"


def without_client(entry: Mapping[str, Any], client: str) -> dict[str, Any]:
    """The columns of `entry` that change when the name of the client goes; none if it does not name it.

    What was done, when, how it went and which person of the server's did it stay. A reason that somebody gave for what
    was done to the client goes whole, as it may tell who that is; so does the address of who came by a link of the
    client. Persons and access tokens of the same name are others: what they did and are stays.
    """
    if str(entry["object"]).startswith("access token "):
        return {}
    new = dict(entry)
    if entry["role"] == Role.COLLABORATOR.word and entry["person"] == client:
        new |= {"person": GONE, "address": ""}
    name = re.escape(client) + _AFTER
    named = rf"^{name}$|(?:(?<=client )|(?<=site )|(?<=/clients/)){name}"
    new["object"] = re.sub(named, GONE, entry["object"], flags=re.IGNORECASE)
    about = new["object"] != entry["object"]
    new["reason"] = "" if about else re.sub(_BEFORE + name, GONE, entry["reason"], flags=re.IGNORECASE)
    return {column: value for column, value in new.items() if value != entry[column]}
