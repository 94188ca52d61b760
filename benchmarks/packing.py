"""What packing texts into shared rows gains: the same training steps on the presets' own data, packed and padded.

    python -m benchmarks.packing                 # TREC with MiniLM (batches of 16), the dialogues with SmolLM2 (of 8)
    python -m benchmarks.packing --pairs 40 --threads 2 --json

One process; each pair takes the step of one batch packed and padded, in turn the one and the other first. Printed are
the medians, the median ratio padded : packed with its 95 % interval (bootstrap over pairs), tokens computed a real
token, and how far the two gradients of the trained tensors are from each other, relative to their norm.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.dp_step import summary

WORKLOADS: Mapping[str, Sequence[str]] = {
    "TREC, MiniLM": ("train.batch=16",),
    "dialogues, SmolLM2": ("experiment=causal_lm", "train.batch=8"),
}


@dataclass
class Workload:
    """A model with its adapter and the training rows."""

    worker: Any
    adapted: Any
    names: Sequence[str]
    batch: int

    @classmethod
    def of(cls, overrides: Sequence[str]) -> "Workload":
        """The preset as a run would begin it."""
        from fedlora.client.worker import worker_for
        from fedlora.config.compose import compose
        from fedlora.config.strategy import make_strategy
        from fedlora.simulations.simulate import resolve
        from fedlora.strategies.base import global_tensors
        from fedlora.training.local import trained_names

        config = resolve(compose([*overrides, "engine=sequential"]))
        worker, method = worker_for(config), make_strategy(config.strategy)
        state = method.start(worker.setup(method))
        adapted = worker.adapted(state.manifest)
        adapted.load(global_tensors(state))
        names = trained_names(state.manifest)
        adapted.set_trained(names)
        return cls(worker, adapted, names, config.train.batch)

    def gradients(self, batch: Mapping[str, Any]) -> tuple[float, Any]:
        """Seconds of the forward and the backward pass, and all gradients as one vector."""
        import torch

        from fedlora.tasks.base import move

        parameters = self.adapted.parameters(self.names)
        for parameter in parameters:
            parameter.grad = None
        with self.adapted.training():
            began = time.perf_counter()
            self.worker.task.losses(self.adapted.model, move(batch, self.adapted.device)).mean().backward()
            seconds = time.perf_counter() - began
        return seconds, torch.cat([parameter.grad.flatten() for parameter in parameters])


def measured(workload: Workload, pairs: int) -> dict[str, Any]:
    """Both kinds of batches, over `pairs` batches of random rows."""
    encoded = workload.worker.encoded("train")
    draw = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"packed": [], "padded": []}
    apart, computed, real = 0.0, {"packed": 0, "padded": 0}, 0
    for number in range(-2, pairs):
        rows = draw.choice(len(encoded), workload.batch, replace=False).tolist()
        made = {"packed": encoded.compact(rows), "padded": encoded.batch(rows)}
        found = {name: workload.gradients(made[name]) for name in sorted(made, reverse=number % 2 == 1)}
        apart = max(apart, float((found["packed"][1] - found["padded"][1]).norm() / found["padded"][1].norm()))
        if number >= 0:
            real += int(encoded.lengths[rows].sum())
            for name, (taken, _) in found.items():
                seconds[name].append(taken)
                computed[name] += made[name]["input_ids"].numel()
    return {
        "packed": float(np.median(seconds["packed"])),
        "padded": summary(seconds["padded"], seconds["packed"]),
        "tokens_a_real_token": {name: count / real for name, count in computed.items()},
        "gradients_apart": apart,
    }


def told(name: str, found: Mapping[str, Any]) -> str:
    """Lines for people."""
    padded, tokens = found["padded"], found["tokens_a_real_token"]
    return (
        f"{name}: {padded['seconds']:.4f} s padded, {found['packed']:.4f} s packed: "
        f"{padded['ratio']:.2f} × [{padded['low']:.2f}, {padded['high']:.2f}]; tokens computed a real one: "
        f"{tokens['padded']:.2f} padded, {tokens['packed']:.2f} packed; gradients apart {found['gradients_apart']:.1e}"
    )


def main() -> None:
    """The command."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="workloads with this text in their name")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = {}
    for name, overrides in WORKLOADS.items():
        if asked.only in name:
            found[name] = measured(Workload.of(overrides), asked.pairs)
            print(told(name, found[name]) if not asked.json else "", end="\n" if not asked.json else "", flush=True)
    if asked.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
