"""A client's part of a round without differential privacy: train, measure, answer."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.flat import only
from fedlora.adapters.manifest import Delivery, Manifest, Tensors
from fedlora.client.agreement import agreed_worker
from fedlora.client.kept import keep_local, loaded
from fedlora.client.private import declined
from fedlora.client.site import SAMPLES, Site, keep_result
from fedlora.client.worker import Worker
from fedlora.privacy.declined import DeclinedError
from fedlora.training.local import LocalResult
from fedlora.wire import Answer, TrainTask, write_answer


@dataclass(frozen=True)
class Trained:
    """What a client has after its training. tensors: those that it uploads and those that are its own.

    holdout: what it measured of the received model. seconds: that all of it took.
    """

    result: LocalResult
    tensors: Tensors
    holdout: Mapping[str, float]
    seconds: float


def answer_openly(task: TrainTask, site: Site, state: RecordDict) -> RecordDict:
    """The client's answer, or that it declines and why.

    Its tensors are as they are; of what it measured, and of its number of rows, that which the owner lets leave.
    """
    try:
        worker = agreed_worker(task, site)
    except DeclinedError as error:
        return declined(task, error)
    began = time.perf_counter()
    adapted = loaded(task, state, worker)
    holdout = measure_holdout(worker, adapted, task.client)
    result = worker.train(adapted, task.client, task.round)
    tensors = after_training(task.manifest, adapted, result.tensors)
    return open_answer(task, site, state, Trained(result, tensors, holdout, time.perf_counter() - began))


def after_training(manifest: Manifest, adapted: AdaptedModel, trained: Tensors) -> Tensors:
    """What a client uploads and keeps: what it `trained`; of what nobody trains, that which `adapted` holds."""
    others = [name for name in sent_or_kept(manifest) if name not in trained]
    return {**adapted.read(others), **trained} if others else trained


def sent_or_kept(manifest: Manifest) -> list[str]:
    """The names of what a client has of its own after its training: what it uploads, then what stays with it."""
    return [*manifest.uploaded(), *manifest.names(Delivery.LOCAL)]


def open_answer(task: TrainTask, site: Site, state: RecordDict, trained: Trained) -> RecordDict:
    """What is sent of `trained`; the client's own tensors and exact results stay with it."""
    keep_local(trained.tensors, task.manifest, state)
    result = trained.result
    found = {"loss": result.loss, "first_loss": result.first_loss, **trained.holdout}
    keep_result(site.results(task), task, {"rows": result.samples, **found})
    found["seconds"] = trained.seconds
    counted = site.metrics_allowed(SAMPLES)
    answer = Answer(
        run=task.run,
        round=task.round,
        client=task.client,
        tensors=only(trained.tensors, task.manifest.uploaded()),
        samples=result.samples if counted else 1,
        metrics={name: value for name, value in found.items() if site.metrics_allowed(name)},
        withheld=not counted,
    )
    return write_answer(answer)


def measure_holdout(worker: Worker, adapted: AdaptedModel, client: int) -> Mapping[str, float]:
    """How the received model does on the client's held-out rows: the task's metrics, named `holdout_…`."""
    rows = worker.rows(client).holdout if worker.config.eval.holdout else ()
    if not len(rows):
        return {}
    metrics = worker.measure(adapted, "train", np.asarray(rows))
    return {**{f"holdout_{name}": value for name, value in metrics.items()}, "holdout_rows": float(len(rows))}
