"""What the views ask of the database. Sums are made there: a run may have hundreds of thousands of roster rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fedlora.server.records import Numbers, Outcome, RoundRecord
from fedlora.server.store import rows, tables
from fedlora.server.store.database import Database

RECENT = 12
"""Rounds that `heads` reads of each run: enough for a median of their seconds."""

_IDS = 400  # in one statement; databases bound the number of parameters
_NOT_FINITE = ("nan", "inf", "-inf")
LETTERS: Mapping[str, Outcome] = {
    "r": Outcome.REPORTED,
    "x": Outcome.REJECTED,
    "d": Outcome.DECLINED,
    "f": Outcome.FAILED,
    "l": Outcome.LOST,
    "t": Outcome.LATE,
}
"""How a matrix writes an outcome."""
_LETTER_OF = {str(outcome): letter for letter, outcome in LETTERS.items()}


@dataclass(frozen=True)
class Span:
    """The rounds of `run` after round `after`, up to round `last` and with it."""

    run: str
    after: int
    last: int


@dataclass(frozen=True)
class Head:
    """One of a run's last rounds, without its roster."""

    round: int
    metrics: Numbers
    seconds: float
    committed_at: datetime


@dataclass(frozen=True)
class Tally:
    """What one client did in some rounds: how often each outcome (by letter), and bytes."""

    counts: Mapping[str, int]
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Said:
    """Why an answer of a client did not count."""

    client: int
    round: int
    outcome: str
    reason: str


class Queries:
    """Of one database. Every method raises StoreError if it cannot be read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def heads(self, runs: Sequence[str]) -> Mapping[str, Sequence[Head]]:
        """The last `RECENT` committed rounds of each run, newest first; runs without one are left out."""
        of, run = tables.rounds.c, tables.runs.c
        query = sa.select(of.run, of.round, of.metrics, of.seconds, of.committed_at).join(tables.runs, of.run == run.id)
        query = query.where(of.round > run.rounds_done - RECENT).order_by(of.run, of.round.desc())
        found: dict[str, list[Head]] = {}
        for row in self._of_runs(query, of.run, runs):
            found.setdefault(row[0], []).append(Head(row[1], rows.figures_in(row[2]), row[3], row[4]))
        return found

    def traffic(self, runs: Sequence[str]) -> Mapping[str, tuple[int, int, int]]:
        """Bytes up, down and once of each run's committed rounds; runs without one are left out."""
        of = tables.rounds.c
        sums = [sa.func.sum(column) for column in (of.bytes_up, of.bytes_down, of.bytes_once)]
        query = sa.select(of.run, *sums).group_by(of.run)
        return {row[0]: (int(row[1]), int(row[2]), int(row[3])) for row in self._of_runs(query, of.run, runs)}

    def metrics(self, run: str, number: int) -> Numbers:
        """Of one committed round; nothing if there is none."""
        query = sa.select(tables.rounds.c.metrics).filter_by(run=run, round=number)
        with self._database.reads() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return {} if found is None else rows.figures_in(found)

    def committed_at(self, run: str, number: int) -> datetime | None:
        """When a round was committed; None if it is not."""
        query = sa.select(tables.rounds.c.committed_at).filter_by(run=run, round=number)
        with self._database.reads() as connection:
            found: datetime | None = connection.execute(query).scalar_one_or_none()
        return found

    def rounds(self, span: Span) -> Sequence[RoundRecord]:
        """The committed rounds of a span, without their rosters."""
        query = _within(sa.select(tables.rounds), tables.rounds, span).order_by(tables.rounds.c.round)
        with self._database.reads() as connection:
            return rows.rounds_in(connection.execute(query).mappings(), ())

    def outcomes(self, span: Span) -> Sequence[tuple[int, Sequence[int], str]]:
        """(round, clients, their letters) of each round of a span that asked somebody, by round; "?": unknown outcome.

        Put together by the database, which takes a third of the time; both texts come from one pass over the rows.
        """
        of = tables.roster.c
        clients = sa.func.aggregate_strings(sa.cast(of.client, sa.String), ",")
        query = sa.select(of.round, clients, sa.func.aggregate_strings(_letter(), "")).group_by(of.round)
        with self._database.reads() as connection:
            found = connection.execute(_within(query, tables.roster, span).order_by(of.round)).all()
        return [(number, [int(client) for client in text.split(",")], letters) for number, text, letters in found]

    def record(self, run: str, number: int) -> RoundRecord | None:
        """A committed round with its roster, by client; None if it is not committed."""
        each_round = sa.select(tables.rounds).filter_by(run=run, round=number)
        each_client = sa.select(tables.roster).filter_by(run=run, round=number).order_by(tables.roster.c.client)
        with self._database.reads() as connection:
            found = rows.rounds_in(
                connection.execute(each_round).mappings(), connection.execute(each_client).mappings()
            )
        return found[0] if found else None

    def own(self, run: str, client: int) -> Sequence[RoundRecord]:
        """The rounds that asked one client; each has that client's row alone."""
        of = tables.roster.c
        each_client = sa.select(tables.roster).filter_by(run=run, client=client)
        asked = sa.select(of.round).filter_by(run=run, client=client)
        each_round = sa.select(tables.rounds).filter_by(run=run).where(tables.rounds.c.round.in_(asked))
        with self._database.reads() as connection:
            return rows.rounds_in(
                connection.execute(each_round.order_by(tables.rounds.c.round)).mappings(),
                connection.execute(each_client).mappings(),
            )

    def tallies(self, span: Span) -> Mapping[int, Tally]:
        """Each client's share in a span; round 0, which trains nobody, is left out."""
        of = tables.roster.c
        sums = (sa.func.count(), sa.func.sum(of.bytes_up), sa.func.sum(of.bytes_down))
        query = _within(sa.select(of.client, _letter(), *sums), tables.roster, span).where(of.round > 0)
        with self._database.reads() as connection:
            found = connection.execute(query.group_by(of.client, of.outcome)).all()
        tallies: dict[int, Tally] = {}
        for client, letter, count, up, down in found:
            before = tallies.get(client, Tally({}, 0, 0))
            counts = {**before.counts, letter: int(count)}
            tallies[client] = Tally(counts, before.bytes_up + int(up), before.bytes_down + int(down))
        return tallies

    def refusals(self, span: Span, each: int) -> Sequence[Said]:
        """The last `each` answers of each client in a span that did not count, newest first."""
        of = tables.roster.c
        place = sa.func.row_number().over(partition_by=of.client, order_by=of.round.desc()).label("place")
        refused = _within(sa.select(of.client, of.round, of.outcome, of.reason, place), tables.roster, span)
        inner = refused.where(of.outcome != str(Outcome.REPORTED)).subquery()
        query = sa.select(inner).where(inner.c.place <= each).order_by(inner.c.round.desc())
        with self._database.reads() as connection:
            return [Said(row.client, row.round, row.outcome, row.reason) for row in connection.execute(query)]

    def reported_values(self, span: Span, metric: str) -> Sequence[tuple[int, float]]:
        """(round, finite value of `metric`) of the clients that reported in a span and have one, by round.

        metric: without quotes or backslashes, which databases write differently in such a path.
        """
        of = tables.roster.c
        value = of.metrics[metric]
        written = value.as_string().not_in(_NOT_FINITE)  # as numbers SQLite takes these words for 0
        query = _within(sa.select(of.round, value.as_float()), tables.roster, span)
        query = query.where(of.outcome == str(Outcome.REPORTED), written).order_by(of.round)
        with self._database.reads() as connection:
            return [(row[0], float(row[1])) for row in connection.execute(query) if row[1] is not None]

    def roster_metrics(self, run: str, rounds: Sequence[int]) -> Sequence[Numbers]:
        """The metrics of those clients that reported in one of `rounds`."""
        of = tables.roster.c
        query = sa.select(of.metrics).filter_by(run=run, outcome=str(Outcome.REPORTED)).where(of.round.in_(rounds))
        with self._database.reads() as connection:
            return [rows.figures_in(found) for found in connection.execute(query).scalars()]

    def _of_runs(self, query: "sa.Select[Any]", column: "sa.ColumnElement[str]", runs: Sequence[str]) -> Iterator[Any]:
        """The rows of a query for those runs."""
        for start in range(0, len(runs), _IDS):
            with self._database.reads() as connection:
                yield from connection.execute(query.where(column.in_(runs[start : start + _IDS]))).all()


def _within(query: "sa.Select[Any]", table: sa.Table, span: Span) -> "sa.Select[Any]":
    of = table.c
    return query.where(of.run == span.run, of.round > span.after, of.round <= span.last)


def _letter() -> "sa.ColumnElement[str]":
    return sa.case(_LETTER_OF, value=tables.roster.c.outcome, else_="?")
