"""What one client's update gives away, without and with differential privacy. Real model, public questions.

    python -m benchmarks.leakage                      # two minutes of one core
    python -m benchmarks.leakage --json

Reading: a client takes one plain SGD step of FedIT on one question. B starts at 0, so what B becomes spans what A makes
of the question's tokens; whoever has the base model tries every token of the vocabulary at every position. (Adam's
first step blurs the span: a quarter of the tokens is read all the same. A text with as many tokens as the rank cannot
be read this way. Neither is a guarantee.)

Membership: a client trains on 60 questions; the attacker compares how much surer of the right answer the model has
become, for questions that the client has and for others.

The private variants release the same through the product's DP-SGD. Reading then is as easy as it can be: the question
is certain to be in the sample, alone, and the attacker knows how many tokens it has.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Role, Tensors, factor_name
from fedlora.client.worker import Worker, worker_for
from fedlora.config.compose import compose
from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.privacy.attacks import bert_inputs, membership, read_tokens
from fedlora.privacy.calibration import calibrated_noise
from fedlora.privacy.dp_sgd import DpSgd, Learner, Units, private_steps
from fedlora.privacy.randomness import RandomSource, system_source
from fedlora.seeding import stream
from fedlora.simulations.simulate import resolve
from fedlora.strategies.base import global_tensors
from fedlora.training.local import train_client, trained_names
from fedlora.training.optim import make_optimizer

DELTA = 1e-5
EPSILONS = (None, 8.0, 3.0)
RUN = DpSgd(noise_multiplier=1.0, bound=1.0, rate=0.1, expected=1.0, steps=120)
"""The run whose noise hides the question: the defaults, for a client that takes part in all rounds."""
TRAINING = DpSgd(noise_multiplier=1.0, bound=1.0, rate=0.25, expected=15.0, steps=40)
"""The run in which membership is attacked."""
MEMBERS, OTHERS = 60, 600


@dataclass(frozen=True)
class World:
    """What the attacker knows: the base model, and the adapter `start` that clients begin with."""

    worker: Worker
    adapted: AdaptedModel
    start: Tensors

    @classmethod
    def of(cls, config: RunConfig) -> "World":
        """The world of a run's first round."""
        worker, method = worker_for(config), make_strategy(config.strategy)
        state = method.start(worker.setup(method))
        return cls(worker, worker.adapted(state.manifest), global_tensors(state))

    @property
    def task(self) -> Any:
        """The text classification."""
        return self.worker.task

    def train(self, rows: NDArray[np.int64], mechanism: DpSgd | None, source: RandomSource) -> None:
        """One client's training on `rows` from the start, with DP-SGD if there is a mechanism; see `adapted` then."""
        self.adapted.load(self.start)
        settings, encoded = self.worker.config.train, self.worker.encoded("train")
        if mechanism is None:
            train_client(self.adapted, self.task, encoded, rows, settings, round_number=1, rounds=1, seed=0, client=0)
            return
        names = trained_names(self.adapted.manifest)
        self.adapted.set_trained(names)
        optimizer = make_optimizer(settings, self.adapted.parameters(names), settings.lr)
        learner = Learner(self.adapted, self.task, encoded, settings.batch)
        with self.adapted.training():
            private_steps(learner, names, Units.of_records(rows), mechanism, optimizer, source)

    def ids(self, row: int) -> list[int]:
        """The tokens of a row of the training split."""
        found: list[int] = self.worker.encoded("train").batch([row])["input_ids"][0].tolist()
        return found

    def query(self, role: Role) -> str:
        """The name of a factor of the first layer's query projection."""
        module = next(module for module in self.adapted.manifest.modules() if module.endswith("query"))
        return factor_name(module, role)


def noise(run: DpSgd, epsilon: float | None) -> DpSgd | None:
    """`run` with the noise that keeps `epsilon`; None for none."""
    if epsilon is None:
        return None
    return replace(run, noise_multiplier=calibrated_noise(epsilon, DELTA, run.rate, run.steps, "pld"))


@dataclass(frozen=True)
class Reading:
    """One question, what the attack read, and how many of its tokens ([CLS] and [SEP] are not counted) are right."""

    text: str
    read: str
    tokens: int
    right: int


def candidates(world: World, positions: int) -> Tensor:
    """A·x for each position and token of the vocabulary, shape [positions, V, r]: all of it public."""
    model: Any = world.adapted.model
    ids = torch.arange(len(world.task.tokenizer))
    A = torch.from_numpy(np.array(world.start[world.query(Role.A)]))
    return torch.stack([bert_inputs(model.base_model.embeddings, ids, place) @ A.T for place in range(positions)])


def attacked(world: World, row: int, known: Tensor) -> Reading:
    """Reads the question from the B that the client sent, which is now in `world.adapted`. known: see `candidates`."""
    name, ids, decode = world.query(Role.B), world.ids(row), world.task.tokenizer.decode
    found = read_tokens(torch.from_numpy(np.array(world.adapted.read([name])[name])), known[: len(ids)])
    words = list(zip(ids, found, strict=True))[1:-1]
    right = sum(true == guess for true, guess in words)
    return Reading(decode([true for true, _ in words]), decode([guess for _, guess in words]), len(words), right)


def read_all(world: World, rows: Sequence[int], step: DpSgd | None, source: RandomSource) -> list[Reading]:
    """The attack on each of `rows`, each the only one that its client trains on."""
    known = candidates(world, max(len(world.ids(row)) for row in rows))
    readings = []
    for row in rows:
        world.train(np.array([row]), step, source)
        readings.append(attacked(world, row, known))
    return readings


def short_rows(world: World, count: int, most: int) -> list[int]:
    """`count` rows of at most `most` tokens, drawn."""
    encoded = world.worker.encoded("train")
    short = [row for row in range(len(encoded)) if len(world.ids(row)) <= most]
    return sorted(stream(0, "leakage", "read").choice(short, count, replace=False).tolist())


def reading(texts: int) -> list[dict[str, Any]]:
    """The attack on `texts` questions without and with DP."""
    world = World.of(settled("adapter.r=32", "train.optimizer=sgd", "train.steps=1"))
    rows = short_rows(world, texts, 17)
    found = []
    for epsilon in EPSILONS:
        mechanism = noise(RUN, epsilon)
        step = mechanism and replace(mechanism, rate=1.0, steps=1)
        readings = read_all(world, rows, step, system_source())
        right, tokens = sum(each.right for each in readings), sum(each.tokens for each in readings)
        texts_found = [asdict(each) for each in readings]
        found.append({**said(epsilon, mechanism), "right": right, "tokens": tokens, "texts": texts_found})
    return found


def settled(*overrides: str) -> RunConfig:
    """The default experiment with IID data, in this process, on one thread."""
    return resolve(compose(["engine=sequential", "data/partition=iid", "train.threads=1", *overrides]))


def said(epsilon: float | None, mechanism: DpSgd | None) -> dict[str, float | None]:
    """The privacy of a variant."""
    return {"epsilon": epsilon, "noise_multiplier": mechanism.noise_multiplier if mechanism else None}


def certainty(world: World, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The logarithm of the odds of the right label (Carlini et al., arXiv 2112.03570), shape [rows]."""
    losses = np.maximum(world.worker.values(world.adapted, "train", rows)["loss"], 1e-12)
    odds: NDArray[np.float64] = -losses - np.log(-np.expm1(-losses))
    return odds


def gains(world: World, rows: Sequence[NDArray[np.int64]], mechanism: DpSgd | None) -> list[NDArray[np.float64]]:
    """How much surer a client's training on `rows[0]` makes the model of each of `rows`."""
    world.adapted.load(world.start)
    before = [certainty(world, some) for some in rows]
    world.train(rows[0], mechanism, system_source())
    return [certainty(world, some) - first for some, first in zip(rows, before, strict=True)]


def memberships(clients: int) -> list[dict[str, Any]]:
    """The attack on `clients` clients without and with DP; means over the clients."""
    world = World.of(settled(f"train.steps={TRAINING.steps}"))
    order = stream(0, "leakage", "members").permutation(len(world.worker.encoded("train")))
    others, holders = order[:OTHERS], order[OTHERS : OTHERS + clients * MEMBERS].reshape(clients, MEMBERS)
    found = []
    for epsilon in EPSILONS:
        mechanism = noise(TRAINING, epsilon)
        seen = [membership(*gains(world, [rows, others], mechanism)) for rows in holders]
        means = {"auc": fmean(each.auc for each in seen), "tpr": fmean(each.tpr for each in seen)}
        allowed = None if epsilon is None else min(1.0, math.exp(epsilon) * 0.01 + DELTA)
        found.append({**said(epsilon, mechanism), **means, "tpr_allowed": allowed})
    return found


def show(found: dict[str, list[dict[str, Any]]], examples: int) -> None:
    """The tables, and a few questions with what was read of them."""
    print("Reading a question from one step's update (every token of the vocabulary tried at every position)")
    print(f"  {'':12} {'noise':>6}  {'tokens right':>16}")
    for row in found["reading"]:
        print(f"  {name(row)} {row['right']:7} of {row['tokens']:3} = {row['right'] / row['tokens']:4.0%}")
    for number in range(min(examples, len(found["reading"][0]["texts"]))):
        print(f"\n  the client's: {found['reading'][0]['texts'][number]['text']}")
        for row in found["reading"]:
            print(f"  {name(row).split('  ')[0]:>12}: {row['texts'][number]['read']}")
    print(f"\nTelling the {MEMBERS} questions of a client from {OTHERS} others (chance: area 0.50, found 1 %)")
    print(f"  {'':12} {'noise':>6}  {'area':>5}  found at 1 % false alarms")
    for row in found["membership"]:
        allowed = "" if row["tpr_allowed"] is None else f"  (epsilon allows {row['tpr_allowed']:.0%})"
        print(f"  {name(row)} {row['auc']:6.3f}  {row['tpr']:5.1%}{allowed}")


def name(row: dict[str, Any]) -> str:
    """A variant and its noise, in columns."""
    if row["epsilon"] is None:
        return f"{'without DP':12} {0:6.3f}"
    return f"{'epsilon ' + format(row['epsilon'], 'g'):12} {row['noise_multiplier']:6.3f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20, help="questions to read")
    parser.add_argument("--clients", type=int, default=2, help="clients whose members are told from others")
    parser.add_argument("--examples", type=int, default=3, help="questions to print")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {"reading": reading(asked.texts), "membership": memberships(asked.clients)}
    if asked.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found, asked.examples)


if __name__ == "__main__":
    main()
