"""Several virtual clients' training tasks of one round, answered in one pass over the base model.

Each gets the answer that it would give alone, up to rounding. Only in a simulation: sites share no process.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Tensors
from fedlora.client.agreement import agreed_worker
from fedlora.client.kept import keep_once, kept_tensors, loaded
from fedlora.client.open import Trained, after_training, measure_holdout, open_answer
from fedlora.client.private_group import PrivateGroup
from fedlora.client.site import Site
from fedlora.client.worker import Worker
from fedlora.errors import RunError
from fedlora.training.cohort.train import Member
from fedlora.training.local import trained_names
from fedlora.wire import TrainTask, read_task

Answered = RecordDict | Exception
"""A client's answer, or what would have been raised if it had trained alone."""


def answer_group(messages: Sequence[Message], contexts: Sequence[Context], site: Site) -> Sequence[Answered]:
    """The answers to training messages of one run and round, in their order.

    Raises what keeps them from being answered together: nothing was changed then that would hinder answering each
    alone.
    """
    tasks = [read_task(message.content) for message in messages]
    states = [context.state for context in contexts]
    for task, state in zip(tasks, states, strict=True):
        keep_once(task, state)
    worker = agreed_worker(tasks[0], site)
    received = _received(tasks, states, worker)
    if tasks[0].config.privacy.local:
        return PrivateGroup(tasks, states, received, site, worker).answers()
    return _answer_openly(tasks, states, received, site, worker)


def _answer_openly(
    tasks: Sequence[TrainTask], states: Sequence[RecordDict], received: Sequence[Tensors], site: Site, worker: Worker
) -> list[Answered]:
    began = time.perf_counter()
    adapted = loaded(tasks[0], states[0], worker)
    members = [
        Member(task.client, worker.rows(task.client).train, start) for task, start in zip(tasks, received, strict=True)
    ]
    holdouts = [_measured(worker, adapted, member) for member in members]
    results = worker.train_group(adapted, members, tasks[0].round)
    seconds = (time.perf_counter() - began) / len(tasks)
    return [
        result
        if isinstance(result, RunError)
        else open_answer(
            task, site, state, Trained(result, after_training(task.manifest, adapted, result.tensors), holdout, seconds)
        )
        for task, state, holdout, result in zip(tasks, states, holdouts, results, strict=True)
    ]


def _received(tasks: Sequence[TrainTask], states: Sequence[RecordDict], worker: Worker) -> list[Tensors]:
    """What each client begins with, of the tensors that are trained or in which they differ."""
    received = [
        {**task.tensors, **kept_tensors(task, state, worker)[1]} for task, state in zip(tasks, states, strict=True)
    ]
    names = dict.fromkeys([*trained_names(tasks[0].manifest), *_differing(received)])
    return [{name: tensors[name] for name in names} for tensors in received]


def _differing(received: Sequence[Tensors]) -> list[str]:
    """The tensors that not all clients have received with the same values."""
    first, *others = received
    return [name for name, value in first.items() if not all(_same(value, other[name]) for other in others)]


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one is other or np.array_equal(one, other)


def _measured(worker: Worker, adapted: AdaptedModel, member: Member) -> dict[str, float]:
    adapted.load(member.start)
    return dict(measure_holdout(worker, adapted, member.client))
