"""The client app: what every client runs, in every engine.

It is an ordinary `flwr.clientapp.ClientApp`. Between rounds a client keeps, in its Flower `Context`, the tensors it was
sent once and the tensors that are its own (`Delivery.LOCAL`); the model stays in the process's worker.
"""

import time
from collections.abc import Mapping

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Delivery
from fedlora.client.agreement import agreed_worker
from fedlora.client.kept import keep_local, keep_once, loaded
from fedlora.client.private import answer_privately, declined, sketch_privately
from fedlora.client.site import SAMPLES, SimulatedSite, Site, keep_result
from fedlora.client.worker import Worker
from fedlora.privacy.declined import DeclinedError
from fedlora.wire import Answer, TrainTask, read_task, write_answer
from fedlora.wire_start import read_sketch_task


def make_app(site: Site) -> ClientApp:
    """The app of a client at `site`.

    What it raises without DP may tell of the site's files: whoever calls it decides what of that travels.
    """
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        """Trains one client for one round."""
        task = read_task(message.content)
        keep_once(task, context.state)
        answer = answer_privately if task.config.privacy.local else answer_openly
        return Message(answer(task, site, context.state), reply_to=message)

    @made.query()
    def query(message: Message, context: Context) -> Message:
        """Answers what a method asks before round 1: a noised sketch of the client's first gradient."""
        del context
        return Message(sketch_privately(read_sketch_task(message.content), site), reply_to=message)

    return made


app = make_app(SimulatedSite())
"""What virtual clients run, in a simulation and on Flower's own runtime."""


def answer_openly(task: TrainTask, site: Site, state: RecordDict) -> RecordDict:
    """The client's answer without differential privacy, or that it declines and why.

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
    keep_local(adapted.read(task.manifest.names(Delivery.LOCAL)), task.manifest, state)
    found = {"loss": result.loss, "first_loss": result.first_loss, **holdout}
    keep_result(site.results(task), task, {"rows": result.samples, **found})
    found["seconds"] = time.perf_counter() - began
    counted = site.metrics_allowed(SAMPLES)
    answer = Answer(
        run=task.run,
        round=task.round,
        client=task.client,
        tensors=adapted.read(task.manifest.uploaded()),
        samples=result.samples if counted else 1,
        metrics={name: value for name, value in found.items() if site.metrics_allowed(name)},
        withheld=not counted,
    )
    return write_answer(answer)


def measure_holdout(worker: Worker, adapted: AdaptedModel, client: int) -> Mapping[str, float]:
    """How the received model does on the client's held-out rows: the task's metrics, named `holdout_…`."""
    rows = worker.rows(client).holdout
    if not len(rows):
        return {}
    metrics = worker.measure(adapted, "train", np.asarray(rows))
    return {**{f"holdout_{name}": value for name, value in metrics.items()}, "holdout_rows": float(len(rows))}
