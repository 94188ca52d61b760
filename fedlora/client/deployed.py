"""The place of a data owner's client: its own files and ledgers, and what its owner's policy lets pass."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedlora.client.home import SiteHome
from fedlora.client.policy import DataRule, ModelRule, Policy
from fedlora.client.policy_file import load_policy
from fedlora.client.site_data import LocalData, LocalModel, SiteWorker, SiteWorkers
from fedlora.config.schema import RunConfig
from fedlora.errors import DataError, ModelError, PrivacyError
from fedlora.privacy.journal import Journal
from fedlora.privacy.ledger import Schedule
from fedlora.wire_work import Work

RESULTS = "results.jsonl"
NOISED = frozenset({"holdout_correct", "holdout_units"})
"""What leaves beside an update under local DP: the ledger has counted it."""


class DeployedSite:
    """`Site` for a daemon. server: "host:port" of the server that was joined."""

    def __init__(self, home: SiteHome, server: str) -> None:
        self.home, self.server = home, server
        self._workers = SiteWorkers()
        self._asking = threading.local()

    @property
    def policy(self) -> Policy:
        """As the file is now: a change needs no restart. Raises PolicyError, StoreError."""
        return load_policy(self.home.policy)

    @property
    def receipt_key(self) -> str | None:
        """The server's key that the owner pins, if one is."""
        return self.policy.privacy.receipt_key

    def worker(self, work: Work) -> SiteWorker:
        """The resident worker for the run's model and data. Raises DataError or ModelError if the policy names none."""
        data, model = self.files(work.config)
        return self._workers.get(limited(work, self.policy.limits.threads), data, model)

    def files(self, config: RunConfig) -> tuple[LocalData, LocalModel]:
        """Where the run's data and base model are here. Raises DataError or ModelError if the policy names none."""
        rule, base = self.policy.data.get(config.data.name), self.policy.models.get(config.model.name)
        if rule is None:
            raise DataError(f"the policy has no data set {config.data.name!r}")
        if base is None:
            raise ModelError(f"the policy has no model {config.model.name!r}")
        return local_data(rule, config.data.name, self.home), local_model(base, config.model.name, self.home)

    def ledger(self, work: Work, schedule: Schedule) -> Path:
        """The ledger of the data set's budget group. Raises PrivacyError if its owner has not opened it."""
        del schedule
        policy = self.policy
        rule = policy.data.get(work.config.data.name)
        if rule is None:
            raise PrivacyError(f"the policy has no data set {work.config.data.name!r}")
        shared = policy.privacy.ledgers
        folder = (self.home.ledgers if shared is None else self.home.folder / shared) / rule.budget
        if not Journal.exists(folder):
            raise PrivacyError(
                f"there is no ledger in {folder}: its owner opens it, once, with `fedlora ledger create {folder} --data"
                " NAME --epsilon E`"
            )
        return folder

    def fingerprint(self, work: Work) -> str:
        """SHA-256 of the rows: for the ledger alone."""
        return self.worker(work).fingerprint

    def asking(self, question: Callable[[], bool]) -> None:
        """Sets how this thread's work asks whether its round is still open."""
        self._asking.question = question

    def still_open(self, work: Work) -> bool:
        """The server's word. No clock of this machine is asked: it may be wrong."""
        del work
        question: Callable[[], bool] = self._asking.question
        return question()

    def metrics_allowed(self, name: str) -> bool:
        """What the policy lets leave, and what the ledger has counted."""
        return name in NOISED or name in self.policy.metrics

    def results(self, work: Work) -> Path | None:
        """One file a run, for the owner's eyes."""
        folder = self.home.results / work.run
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / RESULTS


def limited(work: Work, threads: int | None) -> Work:
    """`work` with no more threads than the owner allows."""
    asked = work.config.train.threads
    if threads is None or (asked is not None and asked <= threads):
        return work
    train = work.config.train.model_copy(update={"threads": threads})
    return replace(work, config=work.config.model_copy(update={"train": train}))


def local_data(rule: DataRule, name: str, home: SiteHome) -> LocalData:
    """Where the data set of a rule is."""
    return LocalData(
        path=rule.place(home.folder),
        columns=rule.columns.mapped(),
        source=rule.source,
        name=name if rule.source == "local" else str(rule.path or name),
        revision=rule.revision,
    )


def local_model(rule: ModelRule, name: str, home: SiteHome) -> LocalModel:
    """Where the base model of a rule is."""
    named = name if rule.source == "local" else str(rule.path or name)
    return LocalModel(source=rule.source, name=named, path=rule.place(home.folder), revision=rule.revision)
