"""The round loop: ask a cohort, admit, aggregate, measure, commit; then the next round.

It calls a Flower strategy's hooks on a Flower Grid, so it does not know which engine answers. A round either is
committed whole (checkpoint and database row) or did not happen. An engine that works in the background measures the
global model of one round while it trains the next; the round is committed when its measurement is there. Not under
central DP: a round whose model was sent out and that a crash then lost would be drawn anew, and so be released twice.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from fedlora.adapters.manifest import Tensors
from fedlora.config.schema import RunConfig
from fedlora.errors import QuorumError
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.events import ClientRefused, ClientReported, Event, RoundCommitted, RoundRetried, RoundStarted
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import Outcome, RoundRecord
from fedlora.strategies.base import State
from fedlora.wire import to_record


@dataclass(frozen=True)
class Links:
    """What a round loop is connected to.

    grid: the engine, as the strategy's hooks see it. ask: gives messages to clients; what it returns, called, gives the
    replies (waiting for them). measure: begins to measure the global model of a state, told whether training follows at
    once; what it returns, called, gives the metrics. ahead: whether it measures in the background, so that a round is
    better begun before the last one is committed. commit: makes a round durable. kept: what clients keep of their
    own, by client, where this process holds it (virtual clients). emit: takes events. stop: asked between rounds; True
    ends the loop after the round that was begun last.
    """

    grid: Grid
    ask: Callable[[Iterable[Message], float | None], Callable[[], Iterable[Message]]]
    measure: Callable[[State, bool], Callable[[], Mapping[str, float]]]
    ahead: bool
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
        self._ahead = links.ahead and config.privacy.name != "central"
        self._seconds: list[float] = []
        self._began = time.perf_counter()
        self._measuring: Callable[[], None] = lambda: None

    def start(self, first: RoundRecord) -> None:
        """Begins with round 0, the state before any training; `first` says what came before it."""
        self._finish(first)

    def run(self, done: int) -> int:
        """Runs the rounds after `done`; returns the number of the last committed one."""
        rounds = self.config.federation.rounds
        for number in range(done + 1, rounds + 1):
            if not self._ahead:
                self._commit_measured()
            if self.links.stop():
                self._commit_measured()
                return number - 1
            self._round(number)
        self._commit_measured()
        return max(done, rounds)

    def _round(self, number: int) -> None:
        """Tries the round until enough report, as often as `federation.below_quorum` says."""
        federation = self.config.federation
        attempts = 1 + (federation.retries if federation.below_quorum == "retry" else 0)
        for attempt in range(1, attempts):
            try:
                return self._try(number)
            except QuorumError as error:
                wait = federation.retry_wait
                self.links.emit(
                    RoundRetried(run=self.strategy.run, round=number, attempt=attempt, wait=wait, reason=str(error))
                )
                self._pause(wait)
        return self._try(number)

    def _pause(self, seconds: float) -> None:
        """Waits, but not on after a request to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.links.stop():
            time.sleep(min(0.5, left))

    def _try(self, number: int) -> None:
        federation = self.config.federation
        arrays = to_record(self.strategy.state.shared)
        messages = self.strategy.configure_train(number, arrays, ConfigRecord(), self.links.grid)
        replies = self.links.ask(messages, federation.timeout)
        self._commit_measured()
        self.links.emit(
            RoundStarted(run=self.strategy.run, round=number, rounds=federation.rounds, cohort=self.strategy.cohort)
        )
        try:
            self.strategy.aggregate_train(number, replies())
        finally:
            self._emit_roster(number)
        self._finish(self.strategy.record)

    def _emit_roster(self, number: int) -> None:
        record = self.strategy.record
        for row in record.roster if record.round == number else ():
            kind = ClientReported if row.outcome is Outcome.REPORTED else ClientRefused
            self.links.emit(kind(run=self.strategy.run, round=number, row=row))

    def _finish(self, record: RoundRecord) -> None:
        """Begins to measure the round that was aggregated last; `_commit_measured` ends it."""
        state, kept = self.strategy.state, self.links.kept()
        metrics = self._measure(state, record.round)

        def commit() -> None:
            self._commit(state, kept, replace(record, metrics={**record.metrics, **metrics()}))

        self._measuring = commit

    def _measure(self, state: State, number: int) -> Callable[[], Mapping[str, float]]:
        last = number == self.config.federation.rounds
        due = self.config.eval.where != "clients" and (number % self.config.eval.every == 0 or last)
        return self.links.measure(state, self._ahead and not last) if due else dict

    def _commit_measured(self) -> None:
        commit, self._measuring = self._measuring, lambda: None
        commit()

    def _commit(self, state: State, kept: Mapping[int, Tensors], record: RoundRecord) -> None:
        now = time.perf_counter()
        record = replace(record, seconds=now - self._began, committed_at=datetime.now(UTC))
        self._began = now
        rng = {"seed": self.config.seed, "next_round": record.round + 1}
        self.links.commit(Checkpoint(record.round, state, record, kept, rng))
        if record.round:
            self._seconds.append(record.seconds)
        rounds = self.config.federation.rounds
        eta = self._eta(rounds - record.round)
        self.links.emit(RoundCommitted.of(self.strategy.run, record, rounds=rounds, eta_seconds=eta))

    def _eta(self, left: int) -> float | None:
        recent = self._seconds[-5:]
        return left * sum(recent) / len(recent) if recent else None
