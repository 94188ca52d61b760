"""How commands tell of a run that is slow or stalled."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

STYLES = {"slow": "yellow", "stalled": "red"}


def plain(text: str) -> Text:
    """Text that came from elsewhere (names, clients' reasons): no markup, no control characters for the terminal."""
    return Text("".join(char if char.isprintable() else "�" for char in text))


def alarm(who: str, health: str, reason: str) -> Iterator[Text]:
    """A line with the reason, for a run that is slow or stalled; nothing for others."""
    if health in STYLES:
        line = plain(f"{who}: {reason}")
        line.stylize(STYLES[health])
        yield line


def alarm_of(row: Mapping[str, Any], who: str | None = None) -> Iterator[Text]:
    """The same of a run as a server lists it. who: what the line begins with; None: the run's id."""
    health = str(row.get("health", ""))
    yield from alarm(str(row["id"]) if who is None else f"{who}{health}", health, str(row.get("health_reason", "")))
