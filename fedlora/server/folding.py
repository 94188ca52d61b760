"""A round's updates, counted in one after another in client order: each as soon as those before it are, then let go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fedlora.server.admission import Verdict
from fedlora.server.aggregation_error import AggregationError
from fedlora.server.client_metrics import clients_found
from fedlora.strategies.base import Metrics, Partial, State, Strategy, Update
from fedlora.wire import Answer


@dataclass(frozen=True)
class Rules:
    """How updates count. by_samples: with their number of rows as weight; else all alike. measured: whether the
    aggregation error is worked out."""

    by_samples: bool
    measured: bool


class Folding:
    """Folds a round that begins at `state`. Nothing of it is seen before `finish`."""

    def __init__(self, method: Strategy, state: State, rules: Rules) -> None:
        self._method, self._state, self._by_samples = method, state, rules.by_samples
        self._partial: Partial = method.begin(state)
        self._error = AggregationError.begin(state) if rules.measured else None

    def add(self, answer: Answer) -> None:
        """Counts one answer in."""
        update = Update(answer.client, answer.tensors, float(answer.samples) if self._by_samples else 1.0)
        self._partial = self._method.fold(self._state, self._partial, update)
        if self._error is not None:
            self._error = self._error.fold(update)

    def finish(self, answers: Sequence[Answer]) -> tuple[State, Metrics]:
        """The state after the round, and what there is to tell. answers: all that were added, with or without tensors.

        Raises StrategyError as `Strategy.finish` does.
        """
        state, metrics = self._method.finish(self._state, self._partial)
        found = None if self._error is None else self._error.finish(state)
        told = {**metrics, **clients_found(answers)}
        if found is not None:  # else it is not this round's turn, or clients keep a factor to themselves
            told |= {"aggregation_error": found.value, "aggregation_error_estimated": float(found.estimated)}
        return state, told


class InOrder:
    """Hands verdicts' answers to a folding in client order, whoever comes first.

    So its bits do not depend on that, and of a cohort only those updates are in memory that overtook another.
    """

    def __init__(self, clients: Sequence[int], folding: Folding) -> None:
        """clients: of the round."""
        self._left: Iterator[int] = iter(sorted(clients))
        self._next = next(self._left, None)
        self._folding = folding
        self._waiting: dict[int, Answer | None] = {}

    def take(self, client: int, verdict: Verdict) -> Verdict:
        """The verdict without the update's tensors, which are counted in, or will be."""
        self._waiting[client] = answer = verdict.answer
        while self._next is not None and self._next in self._waiting:
            ready = self._waiting.pop(self._next)
            if ready is not None:
                self._folding.add(ready)
            self._next = next(self._left, None)
        return verdict if answer is None else replace(verdict, answer=replace(answer, tensors={}))
