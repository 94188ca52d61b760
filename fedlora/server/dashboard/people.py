"""Who uses the dashboard, and how much each may do."""

from dataclasses import dataclass, field
from enum import IntEnum


class Role(IntEnum):
    """What somebody may do; each role may do what those before it may, but a collaborator sees its own site alone."""

    COLLABORATOR = 1
    VIEWER = 2
    OPERATOR = 3
    ADMIN = 4

    @property
    def word(self) -> str:
        """As commands and pages name it."""
        return self.name.lower()


ROLE_WORDS = ("viewer", "operator", "admin")
"""The roles that an access token can have."""


@dataclass(frozen=True)
class Person:
    """Somebody who has logged in.

    name: of the access token, or of the link. csrf: what each of the person's actions must repeat. run, site: what a
    collaborator's link is for; None for everybody else.
    """

    name: str
    role: Role
    csrf: str = field(default="", repr=False)
    run: str | None = None
    site: str | None = None
