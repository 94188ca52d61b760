"""What leaving out operations gains: in the last layer where nothing is read, and in layers below the first adapter.

    python -m benchmarks.last_layer              # TREC with MiniLM and its stock head, the dialogues with SmolLM2
    python -m benchmarks.last_layer --pairs 40 --threads 2 --clock wall --json

One process; each round takes the step of one batch (random rows of the presets' data) in every way, in an order that
turns: with all tokens in the last layer and with few, padded and packed, and, where only higher layers are adapted,
with kept hidden states in the place of the layers below. Not counted is the making of a batch, and of what is kept.
Printed are the medians of the processor's time (or of the clock on the wall), the median ratio of the first way to each
other one with its 95 % interval (bootstrap over rounds), and how far the gradients of the trained tensors are from the
first way's, relative to their norm.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.dp_step import summary
from benchmarks.packing import Workload

CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}

WAYS: Mapping[str, tuple[str, bool, bool]] = {
    "padded, all tokens": ("batch", False, False),
    "padded, few": ("batch", True, False),
    "packed, all tokens": ("compact", False, False),
    "packed, few": ("compact", True, False),
    "packed, few, kept": ("compact", True, True),
}
"""Way → (how the batch is made, whether the last layer computes few positions, whether frozen layers are left out)."""

TOP = ["attention.self.query", "attention.self.value"]

WORKLOADS: Mapping[str, Sequence[str]] = {
    "TREC, MiniLM, stock head": ("train.batch=16", "model.head=stock"),
    "TREC, MiniLM, stock head, adapters in layers 4 and 5 of 6": (
        *("train.batch=16", "model.head=stock"),
        "adapter.targets=[" + ",".join(f"layer.{layer}.{name}" for layer in (4, 5) for name in TOP) + "]",
    ),
    "dialogues, SmolLM2": ("experiment=causal_lm", "train.batch=8"),
}


@contextmanager
def all_tokens() -> Iterator[None]:
    """Within the block, the last layer computes all tokens, as in stock transformers."""
    from fedlora.tasks.last_layer import LastLayer

    with patch.object(LastLayer, "_narrow", lambda *_: False):
        yield


def step(workload: Workload, batch: Mapping[str, Any], few: bool, clock: Callable[[], float]) -> tuple[float, Any]:
    """Seconds of a forward and backward pass, and all gradients as one vector."""
    import torch

    from fedlora.tasks.base import move

    parameters = workload.adapted.parameters(workload.names)
    for parameter in parameters:
        parameter.grad = None
    with workload.adapted.training(), nullcontext() if few else all_tokens():
        began = clock()
        workload.worker.task.losses(workload.adapted.model, move(batch, workload.adapted.device)).mean().backward()
        seconds = clock() - began
    return seconds, torch.cat([parameter.grad.flatten() for parameter in parameters])


def measured(workload: Workload, pairs: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Every way, over `pairs` batches of random rows."""
    encoded, draw = workload.worker.encoded("train"), np.random.default_rng(0)
    kept = kept_states(workload)
    names, first = [name for name in WAYS if kept or not WAYS[name][2]], next(iter(WAYS))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    apart = dict.fromkeys(names, 0.0)
    for number in range(-2, pairs):
        rows = draw.choice(len(encoded), workload.batch, replace=False).tolist()
        turned = names[number % len(names) :] + names[: number % len(names)]
        made = {name: getattr(kept if WAYS[name][2] else encoded, WAYS[name][0])(rows) for name in names}
        found = {name: step(workload, made[name], WAYS[name][1], clock) for name in turned}
        for name, (taken, gradients) in found.items():
            reference = found[first][1]
            apart[name] = max(apart[name], float((gradients - reference).norm() / reference.norm()))
            if number >= 0:
                seconds[name].append(taken)
    return {
        name: {"apart": apart[name], **summary(seconds[first], seconds[name])} | median(seconds[name]) for name in names
    }


def kept_states(workload: Workload) -> Any:
    """The training rows with what enters the first adapted layer; None where that is the first of all."""
    from fedlora.tasks.prefix import frozen_layers, with_states

    layer = frozen_layers(workload.adapted.model, workload.adapted.layers)
    rows = workload.worker.encoded("train")
    return with_states(workload.adapted.model, rows, layer, batch=64, most=4e9) if layer else None


def median(seconds: Sequence[float]) -> dict[str, float]:
    """The way's own seconds."""
    return {"seconds": float(np.median(seconds))}


def told(name: str, found: Mapping[str, Any]) -> str:
    """Lines for people."""
    lines = [f"{name}: times less time than with padding and all tokens"]
    lines += [
        f"  {way:18} {one['seconds']:.4f} s  {one['ratio']:.2f} × [{one['low']:.2f}, {one['high']:.2f}]"
        f"  gradients apart {one['apart']:.1e}"
        for way, one in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    parser.add_argument("--only", default="", help="workloads with this text in their name")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = {}
    for name, overrides in WORKLOADS.items():
        if asked.only in name:
            found[name] = measured(Workload.of(overrides), asked.pairs, CLOCKS[asked.clock])
            print("" if asked.json else told(name, found[name]), end="" if asked.json else "\n", flush=True)
    if asked.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
