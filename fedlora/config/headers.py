"""The comment that each shipped YAML begins with: what it is, and a command to copy."""

from dataclasses import dataclass

_COMMAND = "fedlora simulate"


@dataclass(frozen=True)
class Header:
    """summary: one sentence. command: a whole `fedlora simulate …` that can be copied as it is."""

    summary: str
    command: str

    @property
    def overrides(self) -> list[str]:
        """The command's overrides."""
        return self.command.removeprefix(_COMMAND).split()


def read_header(text: str) -> Header:
    """The header of a shipped YAML. Raises ValueError if it has none."""
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    comments = [line for line in comments if not line.startswith("@package")]
    commands = [line for line in comments if line.startswith(_COMMAND)]
    if not commands or comments[0] in commands:
        raise ValueError("a shipped YAML begins with a comment that says what it is, and one with a command to copy")
    return Header(comments[0], commands[0])
