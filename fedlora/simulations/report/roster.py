"""Who took part: clients × rounds, and what went wrong with whom."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.server.records import Outcome, RosterRow, RunHistory

_CLIENTS = 60
_ROUNDS = 60
SIGNS = {
    Outcome.REPORTED: "✓",
    Outcome.REJECTED: "✗",
    Outcome.DECLINED: "–",
    Outcome.FAILED: "!",
    Outcome.LOST: "?",
    Outcome.LATE: "…",
}
MEANINGS = {
    Outcome.REPORTED: "its update was admitted and counted",
    Outcome.REJECTED: "its update failed the admission gate",
    Outcome.DECLINED: "the client said no",
    Outcome.FAILED: "the client raised an error",
    Outcome.LOST: "no answer before the deadline",
    Outcome.LATE: "others had given the round what it needed",
}


@dataclass(frozen=True)
class Trouble:
    """One client's answer that did not count, for one reason, and the rounds in which that happened."""

    client: int
    outcome: Outcome
    reason: str
    rounds: Sequence[int]


@dataclass(frozen=True)
class Square:
    """One client in one round, as the matrix shows it; `outcome` is "" where the client was not asked."""

    outcome: str
    sign: str
    title: str


@dataclass(frozen=True)
class Matrix:
    """The roster. Only the last `rounds` and at most 60 clients are shown, those with trouble first."""

    rounds: Sequence[int]
    rows: Sequence[tuple[int, Sequence[Square]]]
    hidden_clients: int
    hidden_rounds: int


def troubles(history: RunHistory) -> list[Trouble]:
    """Every answer that did not count, clients with most of them first."""
    found: dict[tuple[int, Outcome, str], list[int]] = defaultdict(list)
    for record in history.rounds:
        for row in record.roster:
            if row.outcome is not Outcome.REPORTED:
                found[(row.client, row.outcome, row.reason)].append(record.round)
    listed = [Trouble(client, outcome, reason, rounds) for (client, outcome, reason), rounds in found.items()]
    return sorted(listed, key=lambda t: (-len(t.rounds), t.client))


def matrix(history: RunHistory) -> Matrix:
    """The roster as a matrix of squares."""
    asked = {(row.client, record.round): row for record in history.rounds for row in record.roster}
    rounds = [record.round for record in history.rounds if record.round]
    bad: dict[int, int] = defaultdict(int)
    for (client, _), row in asked.items():
        bad[client] += row.outcome is not Outcome.REPORTED
    clients = sorted(bad)
    if len(clients) > _CLIENTS:
        clients = sorted(clients, key=lambda client: (-bad[client], client))[:_CLIENTS]
    shown = rounds[-_ROUNDS:]
    rows = [(client, [_square(asked.get((client, number))) for number in shown]) for client in clients]
    return Matrix(shown, rows, len(bad) - len(clients), len(rounds) - len(shown))


def _square(row: RosterRow | None) -> Square:
    if row is None:
        return Square("", "", "not asked")
    return Square(row.outcome.value, SIGNS[row.outcome], f"{row.outcome.value}: {row.reason or MEANINGS[row.outcome]}")
