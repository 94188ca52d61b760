"""The round loop: ask a cohort, admit, aggregate, measure, commit; then the next round.

It calls a Flower strategy's hooks on a Flower Grid, so it does not know which engine answers. A round either is
committed whole (checkpoint and database row) or did not happen.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from fedlora.adapters.manifest import Tensors
from fedlora.config.schema import RunConfig
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.cohort import draw_cohort
from fedlora.server.events import ClientRefused, ClientReported, Event, RoundCommitted, RoundStarted
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import Outcome, RoundRecord
from fedlora.strategies.base import State
from fedlora.wire import to_record


@dataclass(frozen=True)
class Links:
    """What a round loop is connected to.

    grid: the engine. measure: the global model's metrics for a state. commit: makes a round durable.
    kept: what clients keep of their own, by client, where this process holds it (virtual clients). emit: takes events.
    stop: asked between rounds; True ends the loop after the committed round.
    """

    grid: Grid
    measure: Callable[[State], Mapping[str, float]]
    commit: Callable[[Checkpoint], object]
    kept: Callable[[], Mapping[int, Tensors]]
    emit: Callable[[Event], None]
    stop: Callable[[], bool]


class RoundLoop:
    """Runs rounds from a state to the last configured round."""

    def __init__(self, strategy: FlowerStrategy, config: RunConfig, links: Links) -> None:
        self.strategy = strategy
        self.config = config
        self.links = links
        self._seconds: list[float] = []

    def start(self) -> None:
        """Measures and commits round 0: the state before any training."""
        began = time.perf_counter()
        metrics = self.links.measure(self.strategy.state)
        self._commit(RoundRecord(0, dict(metrics), ()), began)

    def run(self, done: int) -> int:
        """Runs the rounds after `done`; returns the number of the last committed one."""
        for number in range(done + 1, self.config.federation.rounds + 1):
            if self.links.stop():
                return number - 1
            self._round(number)
        return max(done, self.config.federation.rounds)

    def _round(self, number: int) -> None:
        began = time.perf_counter()
        federation = self.config.federation
        cohort = draw_cohort(self.config.seed, number, federation.clients, federation.cohort)
        self.links.emit(
            RoundStarted(run=self.strategy.run, round=number, rounds=federation.rounds, cohort=tuple(cohort))
        )
        arrays = to_record(self.strategy.state.shared)
        messages = self.strategy.configure_train(number, arrays, ConfigRecord(), self.links.grid)
        replies = self.links.grid.send_and_receive(messages, timeout=federation.timeout)
        try:
            self.strategy.aggregate_train(number, replies)
        finally:
            self._emit_roster(number)
        record = self.strategy.record
        self._commit(replace(record, metrics={**record.metrics, **self._measure(number)}), began)

    def _emit_roster(self, number: int) -> None:
        record = self.strategy.record
        for row in record.roster if record.round == number else ():
            kind = ClientReported if row.outcome is Outcome.REPORTED else ClientRefused
            self.links.emit(kind(run=self.strategy.run, round=number, row=row))

    def _measure(self, number: int) -> Mapping[str, float]:
        due = number % self.config.eval.every == 0 or number == self.config.federation.rounds
        return self.links.measure(self.strategy.state) if due else {}

    def _commit(self, record: RoundRecord, began: float) -> None:
        record = replace(record, seconds=time.perf_counter() - began, committed_at=datetime.now(UTC))
        rng = {"seed": self.config.seed, "next_round": record.round + 1}
        self.links.commit(Checkpoint(record.round, self.strategy.state, record, self.links.kept(), rng))
        if record.round:
            self._seconds.append(record.seconds)
        rounds = self.config.federation.rounds
        eta = self._eta(rounds - record.round)
        self.links.emit(RoundCommitted.of(self.strategy.run, record, rounds=rounds, eta_seconds=eta))

    def _eta(self, left: int) -> float | None:
        recent = self._seconds[-5:]
        return left * sum(recent) / len(recent) if recent else None
