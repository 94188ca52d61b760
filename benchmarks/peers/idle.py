"""A client that trains nothing: what it is sent and sends back, and how a round of such clients is timed.

It needs numpy and psutil alone, as each peer's process imports it.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

LAYERS, WIDTH, RANK = 6, 384, 8
STEP = 1e-3
"""What a client adds to each value, so that something comes back."""


@dataclass(frozen=True)
class Settings:
    """cohort: clients of a round, which are all that there are. rounds: that are timed, after `WARM` others.

    adds: whether fedlora's clients add `STEP` to what they got, as all peers' do, or send it back as it is.
    """

    cohort: int
    rounds: int
    workers: int = 2
    adds: bool = True


WARM = 2


def arrays() -> dict[str, NDArray[Any]]:
    """26 tensors, 298 kB: LoRA of rank 8 on query and value of six layers of width 384, and a head of two classes."""
    pairs = [shape for _ in range(2 * LAYERS) for shape in ((RANK, WIDTH), (WIDTH, RANK))]
    draw = np.random.default_rng(0)
    shapes = [*pairs, (2, WIDTH), (2,)]
    return {f"p{index}": draw.standard_normal(shape, dtype=np.float32) for index, shape in enumerate(shapes)}


def cpu_seconds() -> float:
    """Of this process and all below it that are alive."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system
    return total


@dataclass
class Stopwatch:
    """Notes when rounds end."""

    marks: list[tuple[float, float]] = field(default_factory=list)

    def mark(self) -> None:
        """A round is over."""
        self.marks.append((time.perf_counter(), cpu_seconds()))

    def tell(self) -> None:
        """Prints the seconds of each round but the first `WARM`: by the clock, and of processors in all of them."""
        rounds = [tuple(b - a for a, b in zip(one, two, strict=True)) for one, two in pairwise(self.marks)]
        print("RESULT " + json.dumps(rounds[WARM - 1 :]), flush=True)


def settings_of(arguments: Sequence[str]) -> Settings:
    """From a command line whose last word is the settings in JSON."""
    return Settings(**json.loads(arguments[-1]))
