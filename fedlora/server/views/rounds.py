"""The rounds of a run as columns, and its rosters as a matrix: kept, and carried on by each new round."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fedlora.server.records import RoundRecord, RunInfo
from fedlora.server.views.facts import facts
from fedlora.server.views.growing import Growing
from fedlora.server.views.metrics import finite, label, quartiles, unit
from fedlora.server.views.model import Column, Matrix, Series, Spread
from fedlora.server.views.queries import LETTERS, Queries, Span

ABSENT = "."
"""In a matrix: not asked."""

LEGEND: Mapping[str, str] = {**{letter: str(outcome) for letter, outcome in LETTERS.items()}, ABSENT: "not asked"}

MOST_METRICS = 64
"""Metrics of clients that can be chosen: clients name them."""

_SAMPLED = 8  # rounds in which the names of clients' metrics are looked for
_PLAIN = re.compile(r"[\w.:/ -]{1,200}", re.ASCII)
_DECLINED, _REPORTED = "d", "r"

Records = Sequence[RoundRecord]
Quantiles = tuple[int, tuple[float, float, float, float, float], int]
"""Round, the five quantiles of a metric, clients."""


@dataclass(frozen=True)
class Rosters:
    """Who was asked when. cells: client → one letter for each of `rounds`. By round: spending, the most rounds that a
    single client has not declined so far, and so may have spent in; reported and asked, clients. shares: client →
    rounds that it has not declined.
    """

    rounds: Sequence[int]
    cells: Mapping[int, str]
    spending: Mapping[int, int]
    reported: Mapping[int, int]
    asked: Mapping[int, int]
    shares: Mapping[int, int]


class _Growing:
    """`Rosters` that are being read."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.cells: dict[int, bytearray] = {}
        self.spending: dict[int, int] = {}
        self.reported: dict[int, int] = {}
        self.asked: dict[int, int] = {}
        self.shares: Counter[int] = Counter()
        self._most = 0

    def add(self, outcomes: Sequence[tuple[int, Sequence[int], str]], span: Span) -> None:
        """(round, clients, their letters) of a span. Round 0 counts where somebody was asked in it."""
        by_round = {number: (clients, letters) for number, clients, letters in outcomes}
        for number in range(max(span.after + 1, 0), span.last + 1):
            if number or 0 in by_round:
                self._add_round(number, *by_round.get(number, ((), "")))

    def _add_round(self, number: int, clients: Sequence[int], letters: str) -> None:
        place = len(self.rounds)
        self.rounds.append(number)
        for client, letter in zip(clients, letters.encode(), strict=True):
            line = self.cells.get(client) or self.cells.setdefault(client, bytearray())
            if len(line) < place:
                line.extend(ABSENT.encode() * (place - len(line)))
            line.append(letter)
        if number:
            self._spend([client for client, letter in zip(clients, letters, strict=True) if letter != _DECLINED])
        self.spending[number] = self._most
        self.reported[number], self.asked[number] = letters.count(_REPORTED), len(letters)

    def _spend(self, clients: Sequence[int]) -> None:
        for client in clients:
            self.shares[client] += 1
            self._most = max(self._most, self.shares[client])

    def shown(self) -> Rosters:
        """As they are now."""
        width = len(self.rounds)
        cells = {client: self.cells[client].decode().ljust(width, ABSENT) for client in sorted(self.cells)}
        by_round = (dict(self.spending), dict(self.reported), dict(self.asked))
        return Rosters(tuple(self.rounds), cells, *by_round, dict(self.shares))


class Rounds:
    """Of one store. A run that is given was just read from it."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._records = Growing[list[RoundRecord], Records](queries, list, self._more_records, tuple)
        self._rosters = Growing[_Growing, Rosters](queries, _Growing, self._more_rosters, _Growing.shown)
        self._spreads = Growing[list[Quantiles], tuple[Quantiles, ...]](
            queries, list, self._more_values, tuple, keep=128
        )

    def records(self, run: RunInfo) -> Records:
        """The committed rounds, without rosters."""
        return self._records.of(run)

    def rosters(self, run: RunInfo) -> Rosters:
        """Who was asked when."""
        return self._rosters.of(run)

    def series(self, run: RunInfo, epsilons: Mapping[int, float] | None) -> Series:
        """The columns of a run. epsilons: ε by what was spent (see `spending`); None without DP."""
        records, rosters = self.records(run), self.rosters(run)
        columns = {**_own_columns(records, rosters), **_metric_columns(records)}
        if epsilons is not None:
            spent = self.spending(run)
            columns["epsilon"] = [epsilons.get(spent[record.round]) for record in records]
        return Series(columns, {name: unit(name) for name in columns}, {name: label(name) for name in columns})

    def spending(self, run: RunInfo) -> Mapping[int, int]:
        """Round → what the run's ε is counted by: participations of the busiest client, or rounds (central DP)."""
        if facts(run).privacy == "central":
            return {record.round: record.round for record in self.records(run)}
        found = self.rosters(run).spending
        return {record.round: found.get(record.round, 0) for record in self.records(run)}

    def matrix(self, run: RunInfo) -> Matrix:
        """The rosters as text."""
        rosters, names = self.rosters(run), facts(run)
        cells = list(rosters.cells.values())
        return Matrix(
            clients=[names.name(number) for number in rosters.cells],
            numbers=list(rosters.cells),
            rounds=rosters.rounds,
            cells=cells,
            legend=LEGEND,
            counts=[_counts(line) for line in cells],
        )

    def spread(self, run: RunInfo, metric: str) -> Spread:
        """A metric over the clients; empty for one that no client has."""
        found = self._spreads.of(run, metric) if _PLAIN.fullmatch(metric) else ()
        least, low, middle, high, most = ([five[place] for _, five, _ in found] for place in range(5))
        return Spread(
            metric=metric,
            label=label(metric),
            unit=unit(metric),
            round=[number for number, _, _ in found],
            min=least,
            q1=low,
            median=middle,
            q3=high,
            max=most,
            n=[count for _, _, count in found],
        )

    def roster_metrics(self, run: RunInfo) -> Sequence[str]:
        """The names of what clients measure, as some of the rounds have them: the first, the last, some between."""
        last = run.rounds_done
        rounds = sorted({1, last, *(last * part // _SAMPLED for part in range(1, _SAMPLED))} - {0})
        found = dict.fromkeys(name for each in self._queries.roster_metrics(run.id, rounds) for name in each)
        return sorted(name for name in found if _PLAIN.fullmatch(name))[:MOST_METRICS]

    def _more_records(self, value: list[RoundRecord], span: Span, key: str) -> None:
        del key
        value.extend(self._queries.rounds(span))

    def _more_rosters(self, value: _Growing, span: Span, key: str) -> None:
        del key
        value.add(self._queries.outcomes(span), span)

    def _more_values(self, value: list[Quantiles], span: Span, key: str) -> None:
        by_round: dict[int, list[float]] = {}
        for number, found in self._queries.reported_values(span, key):
            by_round.setdefault(number, []).append(found)
        value.extend((number, quartiles(values), len(values)) for number, values in by_round.items())


def _own_columns(records: Sequence[RoundRecord], rosters: Rosters) -> dict[str, Column]:
    sent = [record.bytes_up + record.bytes_down + record.bytes_once for record in records]
    return {
        "round": [record.round for record in records],
        "seconds": list(accumulate(record.seconds for record in records)),
        "committed_at": [record.committed_at.timestamp() if record.committed_at else None for record in records],
        "bytes_up": [record.bytes_up for record in records],
        "bytes_down": [record.bytes_down for record in records],
        "bytes_once": [record.bytes_once for record in records],
        "bytes_total": list(accumulate(sent)),
        "reported": [rosters.reported.get(record.round, 0) for record in records],
        "asked": [rosters.asked.get(record.round, 0) for record in records],
    }


def _metric_columns(records: Sequence[RoundRecord]) -> dict[str, Column]:
    names = dict.fromkeys(name for record in records for name in record.metrics)
    return {name: [finite(record.metrics.get(name)) for record in records] for name in names if name not in _OWN}


_OWN = frozenset(_own_columns([], Rosters((), {}, {}, {}, {}, {}))) | {"epsilon"}


def _counts(line: str) -> Mapping[str, int]:
    return {letter: count for letter in LETTERS if (count := line.count(letter))}
