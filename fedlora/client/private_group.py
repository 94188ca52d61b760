"""Several virtual clients' private training tasks, answered in one pass; each spends from its own ledger, as alone.

The ledgers are opened one inside the other: each client's round is noted as begun before anything is computed, all
train together, and then each one's bytes are stored and noted as released by themselves.
"""

import logging
from collections.abc import Sequence

from flwr.app import RecordDict

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Tensors
from fedlora.client.kept import loaded
from fedlora.client.private import (
    PrivateFailureError,
    Ready,
    answer_of,
    learner_of,
    made_ready,
    noise_source,
    released_names,
    spend_for,
    told,
)
from fedlora.client.site import Site
from fedlora.client.worker import Worker
from fedlora.privacy.group import private_group_steps
from fedlora.privacy.randomness import RandomSource
from fedlora.privacy.rows import GradientRows
from fedlora.privacy.schedule import training_mechanism
from fedlora.training.cohort.stack import Stack
from fedlora.training.local import trained_names
from fedlora.training.optim import learning_rate, make_optimizer
from fedlora.training.settings import torch_settings
from fedlora.wire import TrainTask

log = logging.getLogger(__name__)


class PrivateGroup:
    """One group in one round. received: each client's values of the tensors in which clients differ, by name."""

    def __init__(
        self,
        tasks: Sequence[TrainTask],
        states: Sequence[RecordDict],
        received: Sequence[Tensors],
        site: Site,
        worker: Worker,
    ) -> None:
        self._tasks, self._states, self._received = tasks, states, received
        self._site, self._worker = site, worker
        self._open: list[int] = []
        self._contents: dict[int, bytes] = {}
        self._answers: dict[int, RecordDict | Exception] = {}
        self._trouble: Exception | None = None

    def answers(self) -> list[RecordDict | Exception]:
        """Each client's answer, or what it would have raised alone.

        Raises whatever keeps them from training together: then every round that was begun is void, and nothing left.
        """
        self._spend_from(0)
        if self._trouble is not None:
            raise self._trouble
        return [self._answers[place] for place in range(len(self._tasks))]

    def _spend_from(self, place: int) -> None:
        """Has the clients from `place` on spend; the innermost of them all sets the training off."""
        if place == len(self._tasks):
            self._train()
            return
        try:
            self._answers[place] = told(self._tasks[place], lambda: self._answer(place))
        except PrivateFailureError as error:
            self._answers[place] = error
        if place not in self._open:  # it declined, or sends again what it has: that holds nobody up
            self._spend_from(place + 1)

    def _answer(self, place: int) -> RecordDict:
        task = self._tasks[place]
        spent = spend_for(task, self._site, task.round, lambda: self._made(place))
        return answer_of(task, self._site, spent, self._states[place])

    def _made(self, place: int) -> bytes:
        self._open.append(place)
        self._spend_from(place + 1)
        if place not in self._contents:
            raise PrivateFailureError("this client's part of the group's training failed: the log above says why")
        return self._contents[place]

    def _train(self) -> None:
        if not self._open:
            return
        try:
            self._contents = self._trained(loaded(self._tasks[0], self._states[0], self._worker))
        except Exception as error:  # noqa: BLE001 - alone, it is the trouble of nobody or of one
            self._trouble = error

    def _trained(self, adapted: AdaptedModel) -> dict[int, bytes]:
        sources = {place: self._source(place) for place in self._open}
        ready = {place: self._made_ready(place, adapted, source) for place, source in sources.items()}
        members = {place: one for place, one in ready.items() if one is not None}
        if not members:
            return {}
        for place in members:
            sources[place].words(1)  # alone it would seed dropout's masks with that; there is no dropout here
        stack = self._stepped(adapted, members, [sources[place] for place in members])
        names = released_names(adapted.manifest)
        shared = adapted.read([name for name in names if name not in stack.stacked])
        own = [name for name in names if name in stack.stacked]
        return {
            place: one.packed(_ordered({**shared, **mine}, names))
            for (place, one), mine in zip(members.items(), stack.read_each(own), strict=True)
        }

    def _stepped(self, adapted: AdaptedModel, members: dict[int, Ready], sources: Sequence[RandomSource]) -> Stack:
        """The members' tensors after their noised steps."""
        config, names = self._worker.config, trained_names(adapted.manifest)
        adapted.set_trained([])
        rows = GradientRows(adapted.parameters(names))
        stack = Stack(adapted, [self._received[place] for place in members], names, rows)
        lr = learning_rate(config.train, self._tasks[0].round, config.federation.rounds)
        optimizer = make_optimizer(config.train, stack.trained, lr)
        learner = learner_of(self._worker, adapted)
        units = [one.units for one in members.values()]
        with torch_settings(config.train), stack.in_place():
            private_group_steps(learner, stack, rows, units, training_mechanism(config), optimizer, sources)
        return stack

    def _source(self, place: int) -> RandomSource:
        task = self._tasks[place]
        return noise_source(task.config, task.client, task.round)

    def _made_ready(self, place: int, adapted: AdaptedModel, source: RandomSource) -> Ready | None:
        """A client ready to train; None if something of its own goes wrong, which is for its own log."""
        task = self._tasks[place]
        adapted.load(self._received[place])
        try:
            return made_ready(task, self._site, self._worker, adapted, source)
        except Exception:
            log.exception("run %s, client %d: private training failed", task.run, task.client)
            return None


def _ordered(tensors: Tensors, names: Sequence[str]) -> Tensors:
    return {name: tensors[name] for name in names}
