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
from fedlora.client.kept import keep_local, keep_once, loaded
from fedlora.client.private import answer_privately, sketch_privately
from fedlora.client.worker import Worker, worker_for
from fedlora.wire import Answer, TrainTask, read_task, write_answer

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client for one round."""
    task = read_task(message.content)
    worker = worker_for(task.config)
    keep_once(task, context.state)
    answer = answer_privately if task.config.privacy.local else answer_openly
    return Message(answer(task, worker, context.state), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answers what a method asks before round 1: a noised sketch of the client's first gradient."""
    del context
    return Message(sketch_privately(message.content), reply_to=message)


def answer_openly(task: TrainTask, worker: Worker, state: RecordDict) -> RecordDict:
    """The client's answer without differential privacy: its tensors, and what it measured, as they are."""
    began = time.perf_counter()
    adapted = loaded(task, state, worker)
    holdout = measure_holdout(worker, adapted, task.client)
    result = worker.train(adapted, task.client, task.round)
    keep_local(adapted.read(task.manifest.names(Delivery.LOCAL)), task.manifest, state)
    answer = Answer(
        run=task.run,
        round=task.round,
        client=task.client,
        tensors=adapted.read(task.manifest.uploaded()),
        samples=result.samples,
        metrics={
            "loss": result.loss,
            "first_loss": result.first_loss,
            **holdout,
            "seconds": time.perf_counter() - began,
        },
    )
    return write_answer(answer)


def measure_holdout(worker: Worker, adapted: AdaptedModel, client: int) -> Mapping[str, float]:
    """How the received model does on the client's held-out rows: the task's metrics, named `holdout_…`."""
    rows = worker.rows(client).holdout
    if not len(rows):
        return {}
    metrics = worker.measure(adapted, "train", np.asarray(rows))
    return {**{f"holdout_{name}": value for name, value in metrics.items()}, "holdout_rows": float(len(rows))}
