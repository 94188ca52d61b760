"""What a client keeps between rounds in its Flower context: tensors that it was sent once, and those of its own."""

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Delivery, Manifest, Tensors, tensors_digest
from fedlora.client.worker import Worker
from fedlora.flower_internals import contents
from fedlora.wire import TrainTask, WireError, read_tensors, to_record
from fedlora.wire_work import find_record

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
    if not belongs_to(state, task.run) or state[KEPT]["digest"] != task.fixed_digest:
        raise WireError("this client does not hold the fixed tensors of this run: the server must send them again")


def common_state(state: RecordDict, known: dict[str, RecordDict]) -> RecordDict | None:
    """The one state for all virtual clients that keep what `state` holds and nothing of their own; None if it has more.

    known: those so far, by what tells them apart; a new one is added. Where a client keeps something of its own, at
    least its fixed tensors, which have the digest that it compared, become those of the others with that digest.
    """
    kept = find_record(state, KEPT, ConfigRecord)
    if kept is None or FIXED not in state:
        return None
    first = known.setdefault(f"{kept['run']!r} {kept['digest']!r}", state)
    mine, theirs = contents(state), contents(first)
    if mine[FIXED] is not theirs[FIXED]:
        state[FIXED] = theirs[FIXED]
    return first if mine.keys() == {FIXED, LOCAL, KEPT} and not mine[LOCAL] and not theirs[LOCAL] else None


def belongs_to(state: RecordDict, run: str) -> bool:
    """Whether what the client keeps is of that run."""
    kept = find_record(state, KEPT, ConfigRecord)
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
    received = {**task.tensors, **local} if local else task.tensors
    return worker.load(task.manifest, received, fixed, task.fixed_digest)


def kept_tensors(task: TrainTask, state: RecordDict, worker: Worker) -> tuple[Tensors, Tensors]:
    """The fixed and the client's own tensors; fixed ones that the worker holds already are not decoded again."""
    local = _kept(state, LOCAL, task.manifest, Delivery.LOCAL)
    if worker.holds_fixed(task.manifest, task.fixed_digest):
        return {}, local
    return _kept(state, FIXED, task.manifest, Delivery.ONCE), local


def _kept(state: RecordDict, name: str, manifest: Manifest, delivery: Delivery) -> Tensors:
    record = find_record(state, name, ArrayRecord)
    if record is None:
        raise WireError(f"this client's state holds no {name!r} tensors: it was changed, or is of another version")
    names = manifest.names(delivery)
    return read_tensors(record, {each: manifest.tensors[each] for each in names}) if names or len(record) else {}


def keep_local(tensors: Tensors, manifest: Manifest, state: RecordDict) -> None:
    """Stores the client's own tensors, of those in `tensors`, as training left them."""
    names = manifest.names(Delivery.LOCAL)
    if names:
        state[LOCAL] = to_record({name: tensors[name] for name in names})
