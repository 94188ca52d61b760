"""A client's part of a round under local DP: noised before its owner's ledger says so, noted before it leaves.

What travels is the noised tensors and, if clients measure, noised counts. Losses, counts, times, error texts and logs
stay with the client. The bytes of a released round are kept in the ledger's outbox: whoever asks again gets them again.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Delivery, Tensors
from fedlora.client.kept import keep_local, loaded
from fedlora.client.ledgers import fingerprint, ledger_folder, simulated_ledger
from fedlora.client.units import client_units
from fedlora.client.worker import Worker, worker_for
from fedlora.config.schema import RunConfig
from fedlora.errors import PrivacyError
from fedlora.privacy.dp_sgd import Learner, Units, private_steps
from fedlora.privacy.ledger import Schedule
from fedlora.privacy.randomness import RandomSource, seeded_source, system_source
from fedlora.privacy.receipts import Receipt
from fedlora.privacy.schedule import counts_mechanism, run_releases, sketch_mechanism, training_mechanism
from fedlora.privacy.sketch import noised_sketch
from fedlora.privacy.spending import DeclinedError, Spent, spend
from fedlora.seeding import torch_seed
from fedlora.server.tensor_files import pack, unpack
from fedlora.training.local import trained_names
from fedlora.training.optim import learning_rate, make_optimizer
from fedlora.training.settings import seeded_torch, torch_settings
from fedlora.wire import Answer, LedgerHead, TrainTask, write_answer, write_declined
from fedlora.wire_start import SketchTask, read_sketch_task

log = logging.getLogger(__name__)

SERVER = "simulation"
"""The server's name in a simulated client's ledger."""

START = 0
"""The round number in the ledger of what is released before round 1."""

_METRIC = "metric/"
LOCAL_RESULTS = "local-results.jsonl"
"""Beside the ledger: what the client found on its held-out rows, exact, for its owner's eyes."""


class PrivateFailureError(PrivacyError):
    """Something failed at a client that trains privately; the cause is in its own log and nowhere else."""


def answer_privately(task: TrainTask, worker: Worker, state: RecordDict) -> RecordDict:
    """The client's answer under local DP, or that it declines and why.

    Raises PrivateFailureError, which says nothing of the cause, if anything else goes wrong.
    """

    def work() -> RecordDict:
        return _answer(task, _spend(task, task.round, lambda: _released(task, worker, state)), state)

    return _told(task, work)


def sketch_privately(content: RecordDict) -> RecordDict:
    """The client's noised sketch of its first gradient, or that it declines; see `answer_privately`."""
    task = read_sketch_task(content)

    def work() -> RecordDict:
        spent = _spend(task, START, lambda: pack(_sketched(task)))
        return write_answer(Answer(task.run, START, task.client, unpack(spent.content), 1, {}, _head(spent)))

    return _told(task, work)


def _told(task: TrainTask | SketchTask, work: Callable[[], RecordDict]) -> RecordDict:
    """What `work` gives, or that the client declines; of anything else that is raised, nothing travels."""
    try:
        return work()
    except DeclinedError as error:
        return write_declined(str(error))
    except Exception:  # noqa: BLE001 - whatever it is, its text may tell of private rows
        raise _silent(task.run, task.client) from None


def _silent(run: str, client: int) -> PrivateFailureError:
    log.exception("run %s, client %d: private training failed", run, client)
    return PrivateFailureError("private training failed at this client; its own log says why, and does not travel")


def _spend(task: TrainTask | SketchTask, round_number: int, make: Callable[[], bytes]) -> Spent:
    config = task.config
    releases = run_releases(config)
    schedule = Schedule(task.run, SERVER, releases.each, releases.participations, releases.once)
    folder = simulated_ledger(config, task.client, schedule)
    return spend(
        folder,
        schedule,
        round_number,
        fingerprint=fingerprint(config, task.client),
        receipt=Receipt.from_json(task.receipt) if task.receipt else None,
        still_open=lambda: task.deadline is None or time.time() < task.deadline,
        make=make,
    )


def noise_source(config: RunConfig, client: int, round_number: int) -> RandomSource:
    """Where the client's draws of a round come from."""
    if config.privacy.noise == "system":
        return system_source()
    return seeded_source(config.seed, "privacy", client, round_number)


def _released(task: TrainTask, worker: Worker, state: RecordDict) -> bytes:
    """One round's work: the bytes that the outbox keeps, tensors and noised metrics together."""
    source = noise_source(task.config, task.client, task.round)
    adapted = loaded(task, state, worker)
    units = client_units(worker, task.client, source)
    metrics = _noised_metrics(task, worker, adapted, units.holdout, source)
    train_privately(worker, adapted, units.train, task.round, source)
    names = dict.fromkeys([*trained_names(task.manifest), *task.manifest.names(Delivery.LOCAL)])
    tensors = adapted.read(names)
    return pack({**tensors, **{_METRIC + name: np.array(value) for name, value in metrics.items()}})


def train_privately(
    worker: Worker, adapted: AdaptedModel, units: Units, round_number: int, source: RandomSource
) -> None:
    """One round's noised steps from what `adapted` holds; the result is in `adapted` afterwards."""
    config = worker.config
    names = trained_names(adapted.manifest)
    adapted.set_trained(names)
    lr = learning_rate(config.train, round_number, config.federation.rounds)
    optimizer = make_optimizer(config.train, adapted.parameters(names), lr)
    learner = Learner(adapted, worker.task, worker.encoded("train"), config.privacy.micro_batch)
    # Which dropout mask a record gets depends on its place in the batch, and so on who else is in it: that stays
    # within the guarantee only if nobody can know the masks.
    masks = torch_seed(int(source.words(1)[0]), "dropout")
    with torch_settings(config.train), adapted.training(), seeded_torch(masks, adapted.device):
        private_steps(learner, names, units, training_mechanism(config), optimizer, source)


def _noised_metrics(
    task: TrainTask, worker: Worker, adapted: AdaptedModel, units: Units, source: RandomSource
) -> Mapping[str, float]:
    """What may be said of the received model on the held-out units; what is exact goes to the owner's file."""
    scores = unit_scores(worker, adapted, units)
    if len(units):
        _keep_results(task, scores)
    counts = counts_mechanism(task.config)
    if counts is None:
        return {}
    correct, number = counts.noised(scores, source)
    return {"holdout_correct": correct, "holdout_units": number}


def unit_scores(worker: Worker, adapted: AdaptedModel, units: Units) -> NDArray[np.float64]:
    """The share of each unit's rows that the model gets right, in [0, 1]; shape [units]."""
    if not len(units):
        return np.zeros(0)
    values = worker.values(adapted, "train", np.concatenate(units.rows))
    quality = next(found for name, found in values.items() if name != "loss")
    ends = np.cumsum([len(rows) for rows in units.rows])[:-1]
    return np.array([part.mean() for part in np.split(quality, ends)])


def _keep_results(task: TrainTask, scores: NDArray[np.float64]) -> None:
    line = {"run": task.run, "round": task.round, "units": len(scores), "accuracy": float(scores.mean())}
    with (ledger_folder(task.config, task.client) / LOCAL_RESULTS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _answer(task: TrainTask, spent: Spent, state: RecordDict) -> RecordDict:
    found = unpack(spent.content)
    tensors: Tensors = {name: array for name, array in found.items() if not name.startswith(_METRIC)}
    keep_local(tensors, task.manifest, state)
    return write_answer(
        Answer(
            run=task.run,
            round=task.round,
            client=task.client,
            tensors={name: tensors[name] for name in task.manifest.uploaded()},
            samples=1,
            metrics={
                name.removeprefix(_METRIC): float(array) for name, array in found.items() if name.startswith(_METRIC)
            },
            head=_head(spent),
        )
    )


def _head(spent: Spent) -> LedgerHead:
    return LedgerHead(spent.ledger, spent.head.length, spent.head.digest)


def _sketched(task: SketchTask) -> Tensors:
    worker = worker_for(task.config)
    config, source = task.config, noise_source(task.config, task.client, START)
    adapted = worker.adapted(task.manifest)
    units = client_units(worker, task.client, source).train
    learner = Learner(adapted, worker.task, worker.encoded("train"), config.privacy.micro_batch)
    with torch_settings(config.train):
        return noised_sketch(learner, units, sketch_mechanism(config), task.width, config.seed, source)
