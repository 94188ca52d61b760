"""The round loop: ask clients, admit, aggregate, measure, commit; then the next round.

It calls a Flower strategy's hooks on a Flower Grid, so it does not know which engine answers. A round either is
committed whole (checkpoint and database row) or did not happen. An engine that works in the background measures the
global model of one round while it trains the next; the round is committed when its measurement is there.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from flwr.app import ConfigRecord

from fedlora.config.schema import RunConfig
from fedlora.errors import QuorumError
from fedlora.server.buffered import Buffered
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.committing import Committer, Links
from fedlora.server.events import RoundRetried, RoundStarted
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import RoundRecord
from fedlora.strategies.base import State
from fedlora.wire import to_record


@contextmanager
def settled_heap() -> Iterator[None]:
    """Keeps the garbage collector from looking, for the block, at what is there already: libraries, model and data.

    It would go through all of it again and again, for the many small objects of a round's messages.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Rounds(Protocol):
    """A way of having rounds: who is waited for.

    at_work: clients that still work on a round, and on which.
    """

    @property
    def at_work(self) -> Mapping[int, int]:
        """Clients that still work on a round, and on which."""
        ...

    def attempt(self, number: int) -> None:
        """Tries one round. Raises QuorumError if too few report; then it may be tried again."""
        ...

    def resume(self, checkpoint: Checkpoint, state_after: Callable[[int], State]) -> None:
        """Takes up what was open at the checkpoint. state_after: the state after an earlier round."""
        ...

    def close(self) -> None:
        """No more rounds follow: whoever is still at work is told."""
        ...


class Synchronous:
    """A cohort is drawn and asked, and all of it is waited for."""

    at_work: Mapping[int, int] = {}

    def __init__(self, strategy: FlowerStrategy, config: RunConfig, links: Links, settle: Callable[[], None]) -> None:
        """settle: called when the cohort is at work, to commit the round before."""
        self.strategy, self.config, self.links, self._settle = strategy, config, links, settle

    def attempt(self, number: int) -> None:
        """See `Rounds`."""
        federation = self.config.federation
        arrays = to_record(self.strategy.state.shared)
        messages = self.strategy.configure_train(number, arrays, ConfigRecord(), self.links.grid)
        replies = self.links.ask(messages, federation.timeout)
        self._settle()
        self.links.emit(
            RoundStarted(run=self.strategy.run, round=number, rounds=federation.rounds, cohort=self.strategy.cohort)
        )
        self.strategy.aggregate_train(number, replies())

    def resume(self, checkpoint: Checkpoint, state_after: Callable[[int], State]) -> None:
        """Nothing is open between rounds."""

    def close(self) -> None:
        """Nobody is at work between rounds."""


class RoundLoop:
    """Runs rounds from a state to the last configured round."""

    def __init__(self, strategy: FlowerStrategy, config: RunConfig, links: Links) -> None:
        self.strategy = strategy
        self.config = config
        self.links = links
        self._committer = Committer(strategy, config, links)
        kind = Buffered if config.federation.buffered else Synchronous
        self._rounds: Rounds = kind(strategy, config, links, self._committer.settle)

    def start(self, first: RoundRecord) -> None:
        """Begins with round 0, the state before any training; `first` says what came before it."""
        self._committer.take(first, {})

    def resume(self, checkpoint: Checkpoint, state_after: Callable[[int], State]) -> None:
        """Goes on after a committed round. state_after: the state after an earlier one."""
        self.strategy.restore(checkpoint.record)
        self.links.clock.restore(checkpoint.rng)
        self._rounds.resume(checkpoint, state_after)

    def run(self, done: int) -> int:
        """Runs the rounds after `done`; returns the number of the last committed one."""
        try:
            with settled_heap():
                last = self._run(done)
        except Exception:
            self._rounds.close()
            raise
        self._rounds.close()
        return last

    def _run(self, done: int) -> int:
        rounds = self.config.federation.rounds
        for number in range(done + 1, rounds + 1):
            if not self._committer.ahead:
                self._committer.settle()
            if self.links.stop():
                self._committer.settle()
                return number - 1
            self._round(number)
        self._committer.settle()
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
                self.links.clock.pause(wait, self.links.stop)
        return self._try(number)

    def _try(self, number: int) -> None:
        try:
            self._rounds.attempt(number)
        finally:
            self._committer.tell_roster(number)
        self._committer.take(self.strategy.record, self._rounds.at_work)
