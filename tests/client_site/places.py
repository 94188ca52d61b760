"""Sites for tests: files and a ledger for each, and a grid that reaches them in this process."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora.client.app import make_app
from fedlora.client.deployed import NOISED
from fedlora.client.site_data import LocalData, LocalModel, SiteWorker, SiteWorkers
from fedlora.config.schema import RunConfig
from fedlora.data.deal import deal
from fedlora.errors import PrivacyError
from fedlora.privacy.ledger import Schedule, create_ledger
from fedlora.simulations.virtual import Called, VirtualGrid, call_app
from fedlora.wire_work import Work

METRICS = frozenset({"samples", "loss", "first_loss", "seconds", "holdout_loss", "holdout_accuracy", "holdout_rows"})
SERVER = "server.example"


@dataclass
class FileSite:
    """A site with one file, one model, and a ledger if it takes part under local DP."""

    data: LocalData
    model: LocalModel
    folder: Path
    allowed: frozenset[str] = METRICS | NOISED
    server: str = SERVER
    receipt_key: str | None = None
    open: Callable[[Work], bool] = lambda work: True
    seen: list[Work] = field(default_factory=list)
    workers: SiteWorkers = field(default_factory=SiteWorkers)

    def worker(self, work: Work) -> SiteWorker:
        self.seen.append(work)
        return self.workers.get(work, self.data, self.model)

    def ledger(self, work: Work, schedule: Schedule) -> Path:
        if not (self.folder / "ledger").exists():
            raise PrivacyError("this site has no ledger")
        return self.folder / "ledger"

    def open_ledger(self, ceiling: float = 100.0) -> None:
        create_ledger(self.folder / "ledger", "patients", ceiling, 1e-5)

    def fingerprint(self, work: Work) -> str:
        return self.worker(work).fingerprint

    def still_open(self, work: Work) -> bool:
        return self.open(work)

    def metrics_allowed(self, name: str) -> bool:
        return name in self.allowed

    def results(self, work: Work) -> Path | None:
        return self.folder / "results.jsonl"


class SiteCaller:
    """Calls each client's own app: client i is sites[i]."""

    def __init__(self, sites: list[FileSite], meddle: Callable[[Message], Message] = lambda reply: reply) -> None:
        self.apps: list[ClientApp] = [make_app(site) for site in sites]
        self.meddle = meddle

    def call(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Future[Sequence[Called]]:
        future: Future[Sequence[Called]] = Future()
        future.set_result([self._called(*pair) for pair in zip(messages, contexts, strict=True)])
        return future

    def _called(self, message: Message, context: Context) -> Called:
        called = call_app(self.apps[int(str(context.node_config["partition-id"]))], message, context)
        return Called(self.meddle(called.reply), called.state)


class SiteGrid(VirtualGrid):
    """What a link to sites is to a run."""

    keeps_ledgers = True

    def __init__(self, sites: list[FileSite]) -> None:
        super().__init__(SiteCaller(sites), len(sites))


def of_sites(config: RunConfig, store: Path) -> RunConfig:
    """The same run with sites in the place of virtual clients."""
    names = tuple(f"site-{client}" for client in range(config.federation.clients))
    federation = config.federation.model_copy(update={"sites": names, "release_few": True})
    return config.model_copy(update={"federation": federation, "store": store})


def dealt_sites(config: RunConfig, model: Path, folder: Path, **more: Any) -> list[FileSite]:
    """A site for each virtual client of `config`, with the rows that it is dealt, in a file."""
    files = deal(config, folder / "dealt")
    sites = []
    for each in files:
        place = folder / f"site-{each.client}"
        place.mkdir()
        sites.append(FileSite(LocalData(each.path), LocalModel("local", "ours", model), place, **more))
    return sites


def rewritten(path: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]], to: Path) -> Path:
    """A copy of a JSONL file with every row changed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    to.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
    return to
