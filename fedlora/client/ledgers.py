"""The ledgers of simulated clients: one for each, opened when a client is first asked to train privately."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedlora.client.worker import worker_for
from fedlora.config.schema import RunConfig
from fedlora.errors import PrivacyError
from fedlora.privacy.filter import Ceiling, divergence
from fedlora.privacy.journal import Journal
from fedlora.privacy.ledger import Schedule, create_ledger

_simulated: set[Path] = set()
"""The folders in which this process's simulations keep ledgers. A task from elsewhere cannot name one."""


def simulate_in(folder: Path) -> None:
    """Lets clients that are simulated by this process (and its forks) keep their ledgers in `folder`."""
    _simulated.add(folder)


def ledger_folder(config: RunConfig, client: int) -> Path:
    """Where the ledger of a simulated client is. Raises PrivacyError unless this process simulates it."""
    if config.privacy.ledgers not in _simulated:
        raise PrivacyError(
            "privacy=dp needs a ledger that the data's owner keeps, and a simulation alone makes one by itself: this"
            " process simulates no clients there"
        )
    return Path(config.privacy.ledgers) / f"client-{client:05d}"


def simulated_ledger(config: RunConfig, client: int, schedule: Schedule) -> Path:
    """The ledger of a simulated client, opened with the ceiling of `privacy.ceiling` if it is the client's first."""
    folder = ledger_folder(config, client)
    if not Journal.exists(folder):
        ceiling = config.privacy.ceiling or enough_for(schedule, config.privacy.delta)
        create_ledger(folder, f"{config.data.name}, simulated client {client}", ceiling, config.privacy.delta)
    return folder


@lru_cache(maxsize=16)
def enough_for(schedule: Schedule, delta: float) -> float:
    """An ε whose ceiling lets `schedule` through, and hardly more: the filter is looser than the run's accountant."""
    releases = [release for release in schedule.releases for _ in range(schedule.participations)]
    target = 0.01
    while True:
        target *= 1.02
        try:
            ceiling = Ceiling.of(target, delta)
        except PrivacyError:  # too small for any order
            continue
        if divergence([*releases, *schedule.once], ceiling.order) <= ceiling.budget:
            return target


@lru_cache(maxsize=64)
def fingerprint(config: RunConfig, client: int) -> str:
    """SHA-256 of what the client holds: its rows, by number, of the configured data."""
    held = worker_for(config).partition.rows(client)
    described = json.dumps(config.data.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(described.encode() + np.asarray(held, np.int64).tobytes()).hexdigest()
