"""The one way to look at a store: what the dashboard and the command line show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedlora.config.flat import flat
from fedlora.errors import UnknownRunError
from fedlora.server.dashboard.people import Role
from fedlora.server.records import RunStatus
from fedlora.server.store import RunStore
from fedlora.server.views import checkpoints as disk
from fedlora.server.views.accountant import in_a_process
from fedlora.server.views.clients import Clients, Told
from fedlora.server.views.epsilon import Epsilons, Work, promise
from fedlora.server.views.facts import config_of, facts
from fedlora.server.views.log import client_events
from fedlora.server.views.metrics import finite_all
from fedlora.server.views.mine import mine, own_number
from fedlora.server.views.model import (
    CheckpointRow,
    ClientEvents,
    ClientRow,
    Comparison,
    Difference,
    Matrix,
    Mine,
    RosterLine,
    RunRow,
    Series,
    Spread,
)
from fedlora.server.views.presence import Moments, Presences, Waiting, Whereabout, nothing_known
from fedlora.server.views.queries import Queries
from fedlora.server.views.rounds import Rounds
from fedlora.server.views.run_rows import RunRows, Surroundings
from fedlora.server.views.tallies import Tallies
from fedlora.server.views.visibility import may_see_clients

if TYPE_CHECKING:
    from fedlora.identity.records import ClientRecord
    from fedlora.identity.registry import Registry
    from fedlora.link.hub import Presence


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Link:
    """What a server that runs knows beside its store.

    presences: clients by name, best with those who have left, so that it can be said since when. waiting: run → the
    sites whose answers are missing, None: not known. driven: the run that the daemon drives.
    """

    presences: Presences = dict
    waiting: Waiting = nothing_known
    driven: Callable[[], str | None] = lambda: None


class Views:
    """Of one store; for many threads. Nothing is written.

    registry: None where there is none (recorded runs). now: UTC. work: works ε out in the background, None: what is not
    known is left out, as for commands that end at once.

    Every method raises StoreError if the store cannot be read, UnknownRunError for a run that is not there.
    Who may see what of it, `visibility` says.
    """

    def __init__(
        self,
        store: RunStore,
        registry: "Registry | None" = None,
        presences: Presences = dict,
        now: Callable[[], datetime] = utc_now,
        *,
        link: Link | None = None,
        work: Work | None = in_a_process,
    ) -> None:
        """link: in place of `presences`, with what else a running server knows."""
        self._store, self._registry, self._now = store, registry, now
        self._link = link or Link(presences)
        self._queries = Queries(store.database)
        self._rounds, self._tallies = Rounds(self._queries), Tallies(self._queries)
        self._epsilons, self._sizes = Epsilons(work), disk.Sizes()
        self._rows = RunRows(store, self._queries, self._rounds, self._tallies, self._epsilons)
        self._clients, self._moments = Clients(self._tallies, self._epsilons), Moments()

    def runs(self) -> Sequence[RunRow]:
        """All runs, newest first."""
        found = self._store.list()
        queued = [run.id for run in reversed(found) if run.status is RunStatus.QUEUED]
        return self._rows.of(found, self._around(queued))

    def running(self) -> Sequence[RunRow]:
        """Those that are being driven, or should be, newest first."""
        return self._rows.of(self._store.list(status=RunStatus.RUNNING), self._around())

    def run_row(self, run_id: str) -> RunRow:
        """One run."""
        run = self._store.get(run_id)
        queued = self._store.list(status=RunStatus.QUEUED) if run.status is RunStatus.QUEUED else ()
        (row,) = self._rows.of([run], self._around([one.id for one in reversed(queued)]))
        return row

    def series(self, run_id: str) -> Series:
        """The committed rounds as columns."""
        run = self._store.get(run_id)
        promised = promise(run)
        if facts(run).privacy == "none" or promised.total is None:
            return self._rounds.series(run, None)
        spending = self._rounds.spending(run)
        self._epsilons.want(run, promised, spending.get(run.rounds_done, 0))
        return self._rounds.series(run, self._epsilons.known(run, promised))

    def spread(self, run_id: str, metric: str) -> Spread:
        """A metric over the clients that reported, by round."""
        return self._rounds.spread(self._store.get(run_id), metric)

    def roster_metrics(self, run_id: str) -> Sequence[str]:
        """The metrics that `spread` has."""
        return self._rounds.roster_metrics(self._store.get(run_id))

    def matrix(self, run_id: str) -> Matrix:
        """Clients × rounds."""
        return self._rounds.matrix(self._store.get(run_id))

    def roster(self, run_id: str, number: int) -> Sequence[RosterLine]:
        """Who was asked in a round, by client. Raises UnknownRunError too if the round is not committed."""
        run = self._store.get(run_id)
        record = self._queries.record(run_id, number)
        if record is None:
            raise UnknownRunError(f"run {run_id} has no committed round {number}: the last one is {run.rounds_done}")
        names = facts(run)
        return [
            RosterLine(
                client=names.name(row.client),
                number=row.client,
                outcome=str(row.outcome),
                reason=row.reason,
                samples=row.samples,
                bytes_up=row.bytes_up,
                bytes_down=row.bytes_down,
                seconds=row.seconds,
                metrics=finite_all(row.metrics),
            )
            for row in record.roster
        ]

    def client_events(
        self, run_id: str, client: str | None = None, before: int | None = None, limit: int = 100
    ) -> ClientEvents:
        """What the log says of a client (by name, or number where it is virtual), or of all, newest first."""
        return client_events(self._store.get(run_id), client, before, max(1, limit))

    def config(self, run_id: str) -> Mapping[str, Any]:
        """Dotted keys → values."""
        return dict(sorted(flat(config_of(self._store.get(run_id).config)).items()))

    def config_difference(self, run_id: str, other: str) -> Sequence[Difference]:
        """The keys in which two runs differ."""
        here, there = self.config(run_id), self.config(other)
        keys = sorted({**here, **there})
        return [Difference(key, here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)]

    def checkpoints(self, run_id: str) -> Sequence[CheckpointRow]:
        """The committed rounds whose checkpoints are on the disk, oldest first."""
        run = self._store.get(run_id)
        metric = self.run_row(run_id).metric_name
        return disk.checkpoints(self._rounds.records(run), self._sizes.of(run), metric)

    def clients(self, role: Role = Role.OPERATOR) -> Sequence[ClientRow]:
        """All clients, by name; of runs only those whose rosters `role` may see count.

        Where there are others, what clients are at work on is not told either: it says who takes part in them.
        """
        if self._registry is None:
            return ()
        presences, stored = self._link.presences(), self._store.list()
        runs = [run for run in stored if may_see_clients(role, facts(run).privacy)]
        records = self._registry.clients()
        told = {
            name: Told(
                version=there.version,
                data=there.data,
                work=(there.state.work or None) if len(runs) == len(stored) else None,
                device=there.device or None,
                policy=there.policy,
            )
            for name, there in presences.items()
            if there.connection is not None
        }
        around = self._whereabout(records, presences, self._now())
        return self._clients.rows(records, runs, around, told)

    def compare(self, run_ids: Sequence[str]) -> Comparison:
        """Runs beside each other, in the order given; each once."""
        from fedlora.server.views.compare import comparison

        runs = [self._store.get(run_id) for run_id in dict.fromkeys(run_ids)]
        rows = self._rows.of(runs, self._around())
        return comparison(runs, rows, {run.id: self.series(run.id) for run in runs})

    def csv(self, found: Comparison) -> str:
        """A comparison for a spreadsheet, or pandas."""
        from fedlora.server.views.compare import as_csv

        return as_csv(found)

    def mine(self, run_id: str, site: str) -> Mine:
        """What `site` may see of the run. Raises UnknownRunError if the run is not the site's."""
        run = self._store.get(run_id)
        number = own_number(run, site)
        promised = promise(run)
        spent = promised, self._epsilons.known(run, promised)
        return mine(self.run_row(run_id), site, self._rounds.records(run), self._queries.own(run_id, number), spent)

    def _around(self, queued: Sequence[str] = ()) -> Surroundings:
        records = () if self._registry is None else self._registry.clients()
        now = self._now()
        where = self._whereabout(records, self._link.presences(), now)
        return Surroundings(now, where, self._link.waiting, self._link.driven(), queued)

    def _whereabout(
        self, records: "Sequence[ClientRecord]", presences: "Mapping[str, Presence]", now: datetime
    ) -> Whereabout:
        return Whereabout({record.name: record for record in records}, presences, now, self._moments)
