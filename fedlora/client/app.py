"""The client app: what every client runs, in every engine.

It is an ordinary `flwr.clientapp.ClientApp`. Between rounds a client keeps, in its Flower `Context`, the tensors it was
sent once and the tensors that are its own (`Delivery.LOCAL`); the model stays in the process's worker.
"""

import time
from collections.abc import Mapping

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Delivery, Manifest, Tensors, tensors_digest
from fedlora.client.worker import Worker, worker_for
from fedlora.wire import Answer, TrainTask, WireError, read_task, read_tensors, to_record, write_answer

FIXED, LOCAL, KEPT = "fixed", "local", "kept"
"""The records of a client's state: fixed tensors, its own tensors, and which run and digest they belong to."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client for one round."""
    began = time.perf_counter()
    task = read_task(message.content)
    worker = worker_for(task.config)
    keep_once(task, context.state)
    fixed, local = kept_tensors(task, context.state, worker)
    adapted = worker.load(task.manifest, {**task.tensors, **local}, fixed, task.fixed_digest)
    holdout = measure_holdout(worker, adapted, task.client)
    result = worker.train(adapted, task.client, task.round)
    keep_local(adapted, task.manifest, context.state)
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
    return Message(write_answer(answer), reply_to=message)


def keep_once(task: TrainTask, state: RecordDict) -> None:
    """Stores what was sent once, after comparing it with the digest in the task.

    Raises WireError if the fixed tensors are not the run's, or were never sent to this client.
    """
    if task.once is not None:
        manifest = task.manifest
        fixed = {name: task.once[name] for name in manifest.names(Delivery.ONCE)}
        if tensors_digest(fixed) != task.fixed_digest:
            raise WireError(
                "the fixed tensors do not have the digest that the task names: they were changed on the way"
            )
        if not belongs_to(state, task.run):  # a client that comes back with its own tensors keeps them
            state[LOCAL] = to_record({name: task.once[name] for name in manifest.names(Delivery.LOCAL)})
        state[FIXED] = to_record(fixed)
        state[KEPT] = ConfigRecord({"run": task.run, "digest": task.fixed_digest})
    if not belongs_to(state, task.run) or state.config_records[KEPT]["digest"] != task.fixed_digest:
        raise WireError("this client does not hold the fixed tensors of this run: the server must send them again")


def belongs_to(state: RecordDict, run: str) -> bool:
    """Whether what the client keeps is of that run."""
    kept = state.config_records.get(KEPT)
    return kept is not None and kept["run"] == run


def restore_local(state: RecordDict, run: str, tensors: Tensors) -> None:
    """Puts back what a checkpoint kept of a virtual client; the fixed tensors are then sent to it again."""
    state[LOCAL] = to_record(tensors)
    state[KEPT] = ConfigRecord({"run": run, "digest": ""})


def kept_tensors(task: TrainTask, state: RecordDict, worker: Worker) -> tuple[Tensors, Tensors]:
    """The fixed and the client's own tensors; fixed ones that the worker holds already are not decoded again."""
    specs = task.manifest.tensors
    local = read_tensors(state.array_records[LOCAL], {n: specs[n] for n in task.manifest.names(Delivery.LOCAL)})
    if worker.holds_fixed(task.manifest, task.fixed_digest):
        return {}, local
    fixed = read_tensors(state.array_records[FIXED], {n: specs[n] for n in task.manifest.names(Delivery.ONCE)})
    return fixed, local


def keep_local(adapted: AdaptedModel, manifest: Manifest, state: RecordDict) -> None:
    """Stores the client's own tensors as training left them."""
    names = manifest.names(Delivery.LOCAL)
    if names:
        state[LOCAL] = to_record(adapted.read(names))


def measure_holdout(worker: Worker, adapted: AdaptedModel, client: int) -> Mapping[str, float]:
    """How the received model does on the client's held-out rows: the task's metrics, named `holdout_…`."""
    rows = worker.rows(client).holdout
    if not len(rows):
        return {}
    metrics = worker.measure(adapted, "train", np.asarray(rows))
    return {**{f"holdout_{name}": value for name, value in metrics.items()}, "holdout_rows": float(len(rows))}
