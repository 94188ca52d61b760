"""Totals of committed rounds, added up as the rounds come: each row of the store is read once in a process's life.

So a scrape costs the same after a thousand rounds as after one, and counters do not fall when rosters are deleted
after their time or rounds are given up.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from fedlora.server.records import Outcome
from fedlora.server.store.tables import roster, rounds, runs

_AT_A_TIME = 100  # runs in one query


@dataclass(frozen=True)
class Facts:
    """What a run's configuration says of it. secret: who took part must stay so (central DP)."""

    sites: Sequence[str]
    privacy: str

    @property
    def secret(self) -> bool:
        """Whether who took part, and what tells of it, is for nobody but the operator."""
        return self.privacy == "central"


@dataclass
class Totals:
    """Of a run or a client: answers by outcome, bytes by direction."""

    outcomes: Counter[str] = field(default_factory=Counter)
    carried: Counter[str] = field(default_factory=Counter)


class Tally:
    """Totals by run and by client, and the facts of runs. Not for several threads at a time."""

    def __init__(self) -> None:
        self.facts: dict[str, Facts] = {}
        self.runs: Mapping[str, Totals] = defaultdict(Totals)
        self.clients: Mapping[str, Totals] = defaultdict(Totals)
        self._spendable: dict[str, Counter[int]] = defaultdict(Counter)
        self._counted: dict[str, int] = {}

    def most_rounds(self, run: str) -> int:
        """Rounds in which the client of `run` that was asked most often may have spent privacy: did not decline."""
        return max(self._spendable[run].values(), default=0)

    def update(self, connection: sa.Connection, done: Mapping[str, int]) -> None:
        """Adds the rounds committed since the last call. done: the last committed round of every run, by id."""
        self._learn(connection, [run for run in done if run not in self.facts])
        for run, last in done.items():  # rounds that were given up are run again, and count again
            self._counted[run] = min(last, self._counted.get(run, 0))
        behind = [run for run, last in done.items() if last > self._counted[run]]
        for some in _batches(behind):
            self._add_rounds(connection, some)
            self._add_rosters(connection, some)
        self._counted |= {run: done[run] for run in behind}

    def _learn(self, connection: sa.Connection, fresh: Sequence[str]) -> None:
        for some in _batches(fresh):
            found = connection.execute(sa.select(runs.c.id, runs.c.config).where(runs.c.id.in_(some)))
            self.facts |= {run: _facts(config) for run, config in found}

    def _add_rounds(self, connection: sa.Connection, some: Sequence[str]) -> None:
        of = rounds.c
        sums = [sa.func.sum(column) for column in (of.bytes_up, of.bytes_down, of.bytes_once)]
        newer = sa.or_(*((of.run == run) & (of.round > self._counted[run]) for run in some))
        for run, up, down, once in connection.execute(sa.select(of.run, *sums).where(newer).group_by(of.run)):
            self.runs[run].carried.update(up=int(up), down=int(down), once=int(once))

    def _add_rosters(self, connection: sa.Connection, some: Sequence[str]) -> None:
        of = roster.c
        sums = [sa.func.count(), sa.func.sum(of.bytes_up), sa.func.sum(of.bytes_down)]
        newer = sa.or_(*((of.run == run) & (of.round > self._counted[run]) for run in some))
        query = sa.select(of.run, of.client, of.outcome, *sums).where(newer).group_by(of.run, of.client, of.outcome)
        for run, client, outcome, count, up, down in connection.execute(query):
            self._add(run, client, outcome, int(count), Counter(up=int(up), down=int(down)))

    def _add(self, run: str, client: int, outcome: str, count: int, carried: Counter[str]) -> None:
        self.runs[run].outcomes[outcome] += count
        if outcome != Outcome.DECLINED:
            self._spendable[run][client] += count
        facts = self.facts[run]
        if not facts.secret and client < len(facts.sites):
            totals = self.clients[facts.sites[client]]
            totals.outcomes[outcome] += count
            totals.carried.update(carried)


def _facts(config: str) -> Facts:
    found = json.loads(config)
    return Facts(found.get("federation", {}).get("sites", ()), found.get("privacy", {}).get("name", "none"))


def _batches(found: Sequence[str]) -> Iterable[Sequence[str]]:
    return (found[start : start + _AT_A_TIME] for start in range(0, len(found), _AT_A_TIME))
