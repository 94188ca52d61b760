"""The ε of runs, worked out beside the scrapes: composing thousands of releases takes seconds."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedlora.config.schema import RunConfig
from fedlora.server.store import RunStore

log = logging.getLogger(__name__)

RELEASED, PARTICIPATION = "released", "participation"
"""Towards whom an ε holds: who sees what is released; who also sees who took part (central DP)."""


@dataclass(frozen=True)
class Epsilon:
    """By view: what was spent after some rounds, and what the run announced. Empty where nothing is promised."""

    spent: Mapping[str, float] = field(default_factory=dict)
    limit: Mapping[str, float] = field(default_factory=dict)


Work = Callable[[str, int], Epsilon]


class Spent:
    """The newest ε known of each run. One value is worked out at a time, in a thread that does not hold up the end.

    work: (run's id, rounds) → ε. What it raises is logged once for a run, which then has none.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._known: dict[str, tuple[int, Epsilon]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def of(self, run: str, rounds: int) -> Epsilon:
        """What is known now; a later call knows more, if `rounds` are others than those it is known for."""
        with self._lock:
            known = self._known.get(run)
            if (known is None or known[0] != rounds) and self._thread is None:
                self._thread = threading.Thread(target=self._find, args=(run, rounds), name="epsilon", daemon=True)
                self._thread.start()
        return Epsilon() if known is None else known[1]

    def _find(self, run: str, rounds: int) -> None:
        try:
            found = self._work(run, rounds)
        except Exception as error:  # noqa: BLE001 - a figure that cannot be had must not end the server
            log.warning("the ε of run %s cannot be shown: %s", run, error)
            found = Epsilon()
        with self._lock:
            self._known[run] = rounds, found
            self._thread = None


def epsilon_of(store: RunStore) -> Work:
    """What `Spent` works with: the run's own announcement, and what its accountant says of the rounds so far."""

    def work(run: str, rounds: int) -> Epsilon:
        from fedlora.privacy.account import read_account  # loads torch

        info = store.get(run)
        account = read_account(info.folder)
        if account is None or not account.promise["holds"] or account.promise["figures"] is None:
            return Epsilon()
        config = RunConfig.model_validate_json(info.config)
        figures = account.promise["figures"]
        spent = _SPENT[config.privacy.name](config, rounds)
        limit = {RELEASED: float(figures["epsilon"]), PARTICIPATION: float(figures["seen"])}
        return Epsilon(spent, {view: limit[view] for view in spent})

    return work


def _local(config: RunConfig, rounds: int) -> Mapping[str, float]:
    from fedlora.privacy.schedule import run_epsilon

    return {RELEASED: run_epsilon(config, rounds) if rounds else 0.0}


def _central(config: RunConfig, rounds: int) -> Mapping[str, float]:
    from fedlora.privacy.central import central_mechanism

    mechanism = central_mechanism(config)
    if not rounds:
        return {RELEASED: 0.0, PARTICIPATION: 0.0}
    return {RELEASED: mechanism.spent(rounds), PARTICIPATION: mechanism.spent_seen(rounds)}


_SPENT = {"dp": _local, "central": _central}
