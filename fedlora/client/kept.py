"""What a client keeps between rounds in its Flower context: tensors that it was sent once, and those of its own."""

from flwr.app import ConfigRecord, RecordDict

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Delivery, Manifest, Tensors, tensors_digest
from fedlora.client.worker import Worker
from fedlora.wire import TrainTask, WireError, read_tensors, to_record

FIXED, LOCAL, KEPT = "fixed", "local", "kept"
"""The records of a client's state: fixed tensors, its own tensors, and which run and digest they belong to."""


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


def loaded(task: TrainTask, state: RecordDict, worker: Worker) -> AdaptedModel:
    """The worker's model, holding what the client trains from in this round.

    Raises WireError if the client's base model is not the one that the server's fixed tensors were made of.
    """
    if task.base_digest and task.base_digest != worker.base_digest:
        raise WireError(
            f"this client's base model has the SHA-256 {worker.base_digest[:12]}…, the server's"
            f" {task.base_digest[:12]}…: factors that were made of other weights would be silently wrong; use the same"
            " model files"
        )
    fixed, local = kept_tensors(task, state, worker)
    return worker.load(task.manifest, {**task.tensors, **local}, fixed, task.fixed_digest)


def kept_tensors(task: TrainTask, state: RecordDict, worker: Worker) -> tuple[Tensors, Tensors]:
    """The fixed and the client's own tensors; fixed ones that the worker holds already are not decoded again."""
    specs = task.manifest.tensors
    local = read_tensors(state.array_records[LOCAL], {n: specs[n] for n in task.manifest.names(Delivery.LOCAL)})
    if worker.holds_fixed(task.manifest, task.fixed_digest):
        return {}, local
    fixed = read_tensors(state.array_records[FIXED], {n: specs[n] for n in task.manifest.names(Delivery.ONCE)})
    return fixed, local


def keep_local(tensors: Tensors, manifest: Manifest, state: RecordDict) -> None:
    """Stores the client's own tensors, of those in `tensors`, as training left them."""
    names = manifest.names(Delivery.LOCAL)
    if names:
        state[LOCAL] = to_record({name: tensors[name] for name in names})
