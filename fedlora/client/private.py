"""A client's part of a round under local DP: noised before its owner's ledger says so, noted before it leaves.

What travels is the noised tensors and, if clients measure, noised counts. Losses, counts, times, error texts and logs
stay with the client. The bytes of a released round are kept in the ledger's outbox: whoever asks again gets them again.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Delivery, Manifest, Tensors
from fedlora.client.agreement import agreed_worker
from fedlora.client.kept import keep_local, loaded
from fedlora.client.site import Site, keep_result
from fedlora.client.units import client_units
from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.errors import PrivacyError
from fedlora.privacy.dp_sgd import Learner, Units, private_steps
from fedlora.privacy.ledger import Schedule
from fedlora.privacy.randomness import RandomSource, seeded_source, system_source
from fedlora.privacy.receipts import Receipt, verify
from fedlora.privacy.schedule import counts_mechanism, run_releases, sketch_mechanism, training_mechanism
from fedlora.privacy.sketch import noised_sketch
from fedlora.privacy.spending import DeclinedError, Spent, spend
from fedlora.seeding import torch_seed
from fedlora.server.tensor_files import pack, unpack
from fedlora.training.local import trained_names
from fedlora.training.optim import learning_rate, make_optimizer
from fedlora.training.settings import seeded_torch, torch_settings
from fedlora.wire import Answer, LedgerHead, TrainTask, Work, write_answer, write_declined
from fedlora.wire_start import SketchTask

log = logging.getLogger(__name__)

START = 0
"""The round number in the ledger of what is released before round 1."""

_METRIC = "metric/"


class PrivateFailureError(PrivacyError):
    """Something failed at a client that trains privately; the cause is in its own log and nowhere else."""


def answer_privately(task: TrainTask, site: Site, state: RecordDict) -> RecordDict:
    """The client's answer under local DP, or that it declines and why.

    Raises PrivateFailureError, which says nothing of the cause, if anything else goes wrong.
    """

    def work() -> RecordDict:
        worker = agreed_worker(task, site)
        spent = spend_for(task, site, task.round, lambda: _released(task, site, worker, state))
        return answer_of(task, site, spent, state)

    return told(task, work)


def sketch_privately(task: SketchTask, site: Site) -> RecordDict:
    """The client's noised sketch of its first gradient, or that it declines; see `answer_privately`."""

    def work() -> RecordDict:
        worker = agreed_worker(task, site)
        spent = spend_for(task, site, START, lambda: pack(_sketched(task, worker)))
        return write_answer(Answer(task.run, START, task.client, unpack(spent.content), 1, {}, _head(spent)))

    return told(task, work)


def told(task: Work, work: Callable[[], RecordDict]) -> RecordDict:
    """What `work` gives, or that the client declines; of anything else that is raised, nothing travels."""
    try:
        return work()
    except DeclinedError as error:
        return declined(task, error)
    except Exception:  # noqa: BLE001 - whatever it is, its text may tell of private rows
        raise _silent(task.run, task.client) from None


def declined(task: Work, error: DeclinedError) -> RecordDict:
    """The answer that says no; why in detail is for the client's own log."""
    log.warning("run %s, client %d declines: %s", task.run, task.client, error.detail or error)
    return write_declined(str(error))


def _silent(run: str, client: int) -> PrivateFailureError:
    log.exception("run %s, client %d: private training failed", run, client)
    return PrivateFailureError("private training failed at this client; its own log says why, and does not travel")


def spend_for(task: Work, site: Site, round_number: int, make: Callable[[], bytes]) -> Spent:
    """The bytes of a round, spent for in the client's ledger; see `spend`."""
    releases = run_releases(task.config)
    schedule = Schedule(task.run, site.server, releases.each, releases.participations, releases.once)
    return spend(
        site.ledger(task, schedule),
        schedule,
        round_number,
        fingerprint=site.fingerprint(task),
        receipt=_receipt(task, site.receipt_key),
        still_open=lambda: site.still_open(task),
        make=make,
    )


def _receipt(task: Work, key: str | None) -> Receipt | None:
    """The receipt that came with the task. Raises PrivacyError if it is not signed with the one `key` that counts."""
    if not task.receipt:
        return None
    receipt = Receipt.from_json(task.receipt)
    if key is not None:
        verify(receipt, key)
    return receipt


def noise_source(config: RunConfig, client: int, round_number: int) -> RandomSource:
    """Where the client's draws of a round come from."""
    if config.privacy.noise == "system":
        return system_source()
    return seeded_source(config.seed, "privacy", client, round_number)


def _released(task: TrainTask, site: Site, worker: Worker, state: RecordDict) -> bytes:
    """One round's work: the bytes that the outbox keeps, tensors and noised metrics together."""
    source = noise_source(task.config, task.client, task.round)
    adapted = loaded(task, state, worker)
    ready = made_ready(task, site, worker, adapted, source)
    train_privately(worker, adapted, ready.units, task.round, source)
    return ready.packed(adapted.read(released_names(task.manifest)))


def released_names(manifest: Manifest) -> list[str]:
    """The tensors that a round's bytes hold: those that were trained, and the client's own."""
    return list(dict.fromkeys([*trained_names(manifest), *manifest.names(Delivery.LOCAL)]))


@dataclass(frozen=True)
class Ready:
    """A client before its private steps: the units that it trains on, and what it says of the received model."""

    units: Units
    metrics: Mapping[str, float]

    def packed(self, tensors: Tensors) -> bytes:
        """The bytes that the outbox keeps, of the tensors after training and the noised metrics."""
        return pack({**tensors, **{_METRIC + name: np.array(value) for name, value in self.metrics.items()}})


def made_ready(task: TrainTask, site: Site, worker: Worker, adapted: AdaptedModel, source: RandomSource) -> Ready:
    """Measures, with noise, what `adapted` holds on the client's held-out units, and deals its units out."""
    units = client_units(worker, task.client, source)
    scores = unit_scores(worker, adapted, units.holdout)
    if len(scores):
        found = {"units": len(scores), "accuracy": float(scores.mean())}
        keep_result(site.results(task), task, found)
    return Ready(units.train, _noised_metrics(task.config, scores, source))


def learner_of(worker: Worker, adapted: AdaptedModel) -> Learner:
    """What private steps are taken with: the worker's rows, through `adapted`."""
    return Learner(adapted, worker.task, worker.encoded("train"), worker.config.privacy.micro_batch)


def train_privately(
    worker: Worker, adapted: AdaptedModel, units: Units, round_number: int, source: RandomSource
) -> None:
    """One round's noised steps from what `adapted` holds; the result is in `adapted` afterwards."""
    config = worker.config
    names = trained_names(adapted.manifest)
    adapted.set_trained(names)
    lr = learning_rate(config.train, round_number, config.federation.rounds)
    optimizer = make_optimizer(config.train, adapted.parameters(names), lr)
    learner = learner_of(worker, adapted)
    # Which dropout mask a record gets depends on its place in the batch, and so on who else is in it: that stays
    # within the guarantee only if nobody can know the masks.
    masks = torch_seed(int(source.words(1)[0]), "dropout")
    with torch_settings(config.train), adapted.training(), seeded_torch(masks, adapted.device):
        private_steps(learner, names, units, training_mechanism(config), optimizer, source)


def _noised_metrics(config: RunConfig, scores: NDArray[np.float64], source: RandomSource) -> Mapping[str, float]:
    """What may be said of the received model on the held-out units, noised; nothing if clients do not measure."""
    counts = counts_mechanism(config)
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


def answer_of(task: TrainTask, site: Site, spent: Spent, state: RecordDict) -> RecordDict:
    """What is sent: of the released bytes the tensors, and those noised metrics that the owner lets leave."""
    found = unpack(spent.content)
    tensors: Tensors = {name: array for name, array in found.items() if not name.startswith(_METRIC)}
    metrics = {name.removeprefix(_METRIC): float(array) for name, array in found.items() if name not in tensors}
    keep_local(tensors, task.manifest, state)
    return write_answer(
        Answer(
            run=task.run,
            round=task.round,
            client=task.client,
            tensors={name: tensors[name] for name in task.manifest.uploaded()},
            samples=1,
            metrics={name: value for name, value in metrics.items() if site.metrics_allowed(name)},
            head=_head(spent),
        )
    )


def _head(spent: Spent) -> LedgerHead:
    return LedgerHead(spent.ledger, spent.head.length, spent.head.digest)


def _sketched(task: SketchTask, worker: Worker) -> Tensors:
    config, source = task.config, noise_source(task.config, task.client, START)
    adapted = worker.untouched(task.manifest)
    units = client_units(worker, task.client, source).train
    learner = learner_of(worker, adapted)
    with torch_settings(config.train):
        return noised_sketch(learner, units, sketch_mechanism(config), task.width, config.seed, source)
