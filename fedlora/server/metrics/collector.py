"""From what the store, the registry and the link know to samples, in one pass."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from fedlora import __version__
from fedlora.identity.records import ClientRecord, ClientStatus
from fedlora.server.metrics.families import FAMILIES, Sheet
from fedlora.server.metrics.reading import Reading, Shown, read
from fedlora.server.metrics.spent import Spent, epsilon_of
from fedlora.server.metrics.tally import Tally
from fedlora.server.records import Outcome, RunStatus
from fedlora.server.store import RunStore

MOST_FIGURES = 64
"""Figures of a round that are shown: strategies and clients name them."""


@dataclass(frozen=True)
class LinkState:
    """The link at one moment. connected: client → whether it is paused. works: run → answers that are waited for."""

    connected: Mapping[str, bool] = field(default_factory=dict)
    works: Mapping[str, int] = field(default_factory=dict)


class ServerCollector(Collector):
    """A collector of prometheus-client over one server. clients, link: asked at each scrape, by any thread.

    One scrape at a time. `collect` raises StoreError if the store cannot be read.
    """

    def __init__(
        self,
        store: RunStore,
        clients: Callable[[], Sequence[ClientRecord]],
        link: Callable[[], LinkState],
        spent: Spent | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._clients, self._link, self._clock = store, clients, link, clock
        self._spent = spent or Spent(epsilon_of(store))
        self._tally = Tally()

    def describe(self) -> Iterator[Metric]:
        """All families, without samples."""
        return (family.metric({}) for family in FAMILIES)

    def collect(self) -> Iterator[Metric]:
        """All families, with what is known now."""
        sheet = Sheet()
        reading, link = read(self._store.database, self._tally), self._link()
        sheet.add("build_info", 1, version=__version__)
        self._add_server(sheet, reading, link)
        for run in reading.shown:
            self._add_run(sheet, run)
        self._add_clients(sheet, link)
        yield from sheet.metrics()

    def _add_server(self, sheet: Sheet, reading: Reading, link: LinkState) -> None:
        for status in RunStatus:
            sheet.add("runs", reading.statuses.get(status, 0), status=status)
        sheet.add("queue_length", reading.statuses.get(RunStatus.QUEUED, 0))
        sheet.add("link_connected_clients", len(link.connected))
        sheet.add("link_open_works", sum(count for run, count in link.works.items() if not self._secret(run)))

    def _secret(self, run: str) -> bool:
        """Who is asked tells who takes part. Of a run that is not known yet, nothing is told either."""
        return run not in self._tally.facts or self._tally.facts[run].secret

    def _add_run(self, sheet: Sheet, run: Shown) -> None:
        labels = {"run": run.id, "strategy": run.strategy}
        privacy = self._tally.facts[run.id].privacy
        sheet.add("run_info", 1, **labels, name=run.name, status=run.status, privacy=privacy)
        sheet.add("run_rounds", run.rounds, **labels)
        if run.last is None:
            return
        sheet.add("run_round", run.last.round, **labels)
        sheet.add("run_last_commit_timestamp_seconds", run.last.at.timestamp(), **labels)
        for name in sorted(run.last.metrics, key=_own_first)[:MOST_FIGURES]:
            sheet.add("run_metric", run.last.metrics[name], **labels, metric=name)
        if not self._secret(run.id):
            sheet.add("run_last_round_seconds", run.last.seconds, **labels)
            self._add_totals(sheet, run.id, labels)
        if privacy != "none":
            self._add_epsilon(sheet, run.id, run.last.round, labels)

    def _add_totals(self, sheet: Sheet, run: str, labels: Mapping[str, str]) -> None:
        totals = self._tally.runs[run]
        for outcome in Outcome:
            sheet.add("run_updates_total", totals.outcomes[outcome], **labels, outcome=outcome)
        for direction in ("up", "down", "once"):
            sheet.add("run_bytes_total", totals.carried[direction], **labels, direction=direction)

    def _add_epsilon(self, sheet: Sheet, run: str, last: int, labels: Mapping[str, str]) -> None:
        rounds = last if self._secret(run) else self._tally.most_rounds(run)
        found = self._spent.of(run, rounds)
        for view in found.spent:
            sheet.add("run_epsilon", found.spent[view], **labels, view=view)
            sheet.add("run_epsilon_limit", found.limit[view], **labels, view=view)

    def _add_clients(self, sheet: Sheet, link: LinkState) -> None:
        records = self._clients()
        for status in ClientStatus:
            sheet.add("clients", sum(record.status is status for record in records), status=status)
        for record in records:
            if record.status is ClientStatus.ACTIVE:
                self._add_client(sheet, record, link)

    def _add_client(self, sheet: Sheet, record: ClientRecord, link: LinkState) -> None:
        here, client = record.name in link.connected, record.name
        sheet.add("client_connected", here, client=client)
        sheet.add("client_paused", link.connected.get(client, False), client=client)
        seen = self._clock() if here else record.last_seen.timestamp() if record.last_seen else None
        if seen is not None:
            sheet.add("client_last_seen_timestamp_seconds", seen, client=client)
        if record.certificate_expires is not None:
            expiry = record.certificate_expires.timestamp()
            sheet.add("client_certificate_expiry_timestamp_seconds", expiry, client=client)
        totals = self._tally.clients[client]
        for outcome in Outcome:
            sheet.add("client_updates_total", totals.outcomes[outcome], client=client, outcome=outcome)
        for direction in ("up", "down"):
            sheet.add("client_bytes_total", totals.carried[direction], client=client, direction=direction)


def _own_first(name: str) -> tuple[bool, str]:
    """The server's own figures before those that clients have named."""
    return name.startswith("clients_"), name
