"""Where a client app runs: what it needs of the place, and nothing that it could take by itself.

`SimulatedSite` is a virtual client's place. A data owner's daemon has one of its own, with its files and its ledger.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fedlora.client.ledgers import fingerprint, ledger_folder, simulated_ledger
from fedlora.client.worker import Worker, worker_for
from fedlora.privacy.ledger import Schedule
from fedlora.wire_work import Work

SAMPLES = "samples"
"""What `Site.metrics_allowed` is asked for the number of training rows; the metrics have their own names."""

LOCAL_RESULTS = "local-results.jsonl"
"""Beside a simulated ledger: what the client found on its held-out rows, exact, for its owner's eyes."""


class Site(Protocol):
    """A place where clients train. `work` is what is asked: `Work`'s facts alone are read."""

    @property
    def server(self) -> str:
        """The server's name in the ledger."""
        ...

    @property
    def receipt_key(self) -> str | None:
        """The id of the key that a receipt for the ledger must be signed with; None: any one key."""
        ...

    def worker(self, work: Work) -> Worker:
        """What trains, with the data and the model of this place. Raises FedloraError where there is none."""
        ...

    def ledger(self, work: Work, schedule: Schedule) -> Path:
        """The folder of the ledger to spend from. Raises PrivacyError if there is none."""
        ...

    def fingerprint(self, work: Work) -> str:
        """What the ledger notes of the data as they are now; it does not leave."""
        ...

    def still_open(self, work: Work) -> bool:
        """Whether the server still takes an answer."""
        ...

    def metrics_allowed(self, name: str) -> bool:
        """Whether the owner lets that metric leave (`loss`, `holdout_accuracy`, …), or the rows' number (`SAMPLES`)."""
        ...

    def results(self, work: Work) -> Path | None:
        """The file for exact results, which do not leave; None: they are not kept."""
        ...


class SimulatedSite:
    """The place of every virtual client of this process: the data are the server's, ledgers are made as needed."""

    server = "simulation"
    receipt_key: str | None = None

    def worker(self, work: Work) -> Worker:
        """The process's resident worker."""
        return worker_for(work.config)

    def ledger(self, work: Work, schedule: Schedule) -> Path:
        """One of the client's own, opened when it is first asked. Raises PrivacyError outside a simulation."""
        return simulated_ledger(work.config, work.client, schedule)

    def fingerprint(self, work: Work) -> str:
        """Of the client's row numbers."""
        return fingerprint(work.config, work.client)

    def still_open(self, work: Work) -> bool:
        """By this machine's clock, which is the server's."""
        return work.deadline is None or time.time() < work.deadline

    def metrics_allowed(self, name: str) -> bool:
        """All of them."""
        del name
        return True

    def results(self, work: Work) -> Path | None:
        """Beside the ledger."""
        return ledger_folder(work.config, work.client) / LOCAL_RESULTS if work.config.privacy.local else None


def keep_result(path: Path | None, work: Work, found: Mapping[str, float]) -> None:
    """Adds what was found in a round to the owner's own file, which nobody else may read."""
    if path is None:
        return
    line = {"run": work.run, "round": work.round, **found}
    with open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:  # Path.open takes no opener
        file.write(json.dumps(line) + "\n")
