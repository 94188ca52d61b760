"""Makes `docs/private-results.md`: accuracy against ε under local DP, for the four strategies, on TREC-6.

    python -m benchmarks.private_results              # every run that was not made yet, then the page
    python -m benchmarks.private_results --page-only  # the page, from the runs that are there

The shipped preset `experiment=private`. For each strategy, learning rate and clip are the best of a grid of twelve on
the validation split at ε = 3, with a seed of its own, and the learning rate without DP the best of the same four; then
five seeds run at every ε. The four starts of Fed-SB are compared at equal total ε. The figures of finished runs are
kept in `docs/private-results.jsonl`: the command goes on where it stopped.
"""

import argparse
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.private_page import write_page
from benchmarks.runs import Book, Figures, Job, make

if TYPE_CHECKING:
    from fedlora.server.records import RunHistory

BOOK = Book(Path("docs/private-results.jsonl"))
EPSILONS = (3.0, 8.0, 1.0, None)
"""None: without DP. The order in which the runs are made."""
SEARCHED = 3.0
SEARCH_SEED = 1000
SEEDS = range(5)
CLIPS = (0.5, 2.0, 8.0)
INITS = ("random", "public", "private")
"""Beside `weights`, which is the default."""


@dataclass(frozen=True)
class Method:
    """What is compared: a strategy at a rank, with its grid of learning rates; or the head alone."""

    name: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...]


HEAD_ONLY = Method(
    # FFA-LoRA on one module with a scaling that makes ΔW nothing: what is left is the head.
    "head only",
    (
        "strategy=ffa_lora",
        "adapter.r=1",
        "adapter.scaling=1e-9",
        "adapter.targets=[encoder.layer.5.attention.self.value]",
    ),
    (1e-2, 5e-2, 2e-1, 1.0),
)
METHODS = (
    Method("fedavg", ("strategy=fedavg", "adapter.r=4"), (3e-3, 1e-2, 3e-2, 1e-1)),
    Method("ffa_lora", ("strategy=ffa_lora", "adapter.r=8"), (1e-2, 3e-2, 1e-1, 3e-1)),
    Method("lora_fair", ("strategy=lora_fair", "adapter.r=4"), (3e-3, 1e-2, 3e-2, 1e-1)),
    Method("fed_sb", ("strategy=fed_sb", "adapter.r=16"), (1e-2, 3e-2, 1e-1, 3e-1)),
    HEAD_ONLY,
)


@dataclass(frozen=True)
class Setting:
    """A method with what was found for it."""

    method: Method
    rate: float
    clip: float

    def job(self, epsilon: float | None, seed: int, init: str = "weights") -> Job:
        """One run."""
        private = [f"privacy.epsilon={epsilon}", f"privacy.clip={self.clip}"]
        if epsilon is None:
            private = ["privacy=none", "privacy.epsilon=null"]
        start = [] if init == "weights" else [f"strategy.init={init}"]
        name = f"{self.method.name}-{init}-eps{epsilon}-lr{self.rate:g}-C{self.clip:g}-s{seed}".replace(" ", "-")
        overrides = (
            "experiment=private",
            *self.method.overrides,
            *start,
            *private,
            f"train.lr={self.rate}",
            f"seed={seed}",
            f"eval.test={'false' if seed == SEARCH_SEED else 'true'}",
            "eval.every=100",
            "engine=sequential",
            "train.threads=1",
        )
        return Job(name, overrides, may_diverge=seed == SEARCH_SEED)


def settings_of(method: Method, epsilon: float | None) -> list[Setting]:
    """The grid; without DP there is no clip to choose."""
    clips = CLIPS[:1] if epsilon is None else CLIPS
    return [Setting(method, rate, clip) for rate in method.rates for clip in clips]


def best(method: Method, epsilon: float | None) -> Setting:
    """The setting with the best validation accuracy at ε = 3, or without DP (the first in the grid, if equal)."""
    have, searched = BOOK.read(), epsilon and SEARCHED
    grid = settings_of(method, epsilon)
    return max(grid, key=lambda setting: have[setting.job(searched, SEARCH_SEED).name]["validation"])


def figures(history: "RunHistory") -> Figures:
    """What the page needs of one run."""
    from fedlora.privacy.account import read_account

    account = read_account(history.run.folder)
    promise: Any = {} if account is None else account.promise["figures"]
    return {
        "validation": history.rounds[-1].metrics["validation_accuracy"],
        "test": history.run.summary.get("test_accuracy"),
        "seconds": sum(record.seconds for record in history.rounds[1:]),
        "up": sum(record.bytes_up for record in history.rounds[1:]) / max(1, len(history.rounds) - 1),
        "spent": None if account is None else account.largest,
        "privacy": promise,
        "machine": machine(),
    }


def machine() -> str:
    """What a run was made on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"one core of {platform.machine()}"
    return f"{device}, Python {platform.python_version()}, torch {torch.__version__}"


def search() -> Iterable[Job]:
    """The runs that settings are chosen by."""
    for method in METHODS:
        for epsilon in (SEARCHED, None):
            yield from (setting.job(epsilon, SEARCH_SEED) for setting in settings_of(method, epsilon))


def wanted() -> Iterable[Job]:
    """The seed runs, the cheapest to miss last."""
    for epsilon in EPSILONS:
        for method in METHODS:
            yield from (best(method, epsilon).job(epsilon, seed) for seed in SEEDS)
        if epsilon == SEARCHED:
            sb = best(METHODS[3], epsilon)
            yield from (sb.job(SEARCHED, seed, init) for init in INITS for seed in SEEDS)


def collect() -> list[dict[str, Any]]:
    """The rows of the page: for each method and ε, and each start of Fed-SB, the runs that are there."""
    have = BOOK.read()
    rows = []
    for method in METHODS:
        for epsilon in [*sorted(e for e in EPSILONS if e), None]:
            rows.append(row(best(method, epsilon), epsilon, "weights", have))
        if method.name == "fed_sb":
            rows += [row(best(method, SEARCHED), SEARCHED, init, have) for init in INITS]
    return rows


def row(setting: Setting, epsilon: float | None, init: str, have: dict[str, Figures]) -> dict[str, Any]:
    """One line: what was asked for, and the figures of the seeds that were run."""
    runs = [have[name] for seed in SEEDS if (name := setting.job(epsilon, seed, init).name) in have]
    return {
        "method": setting.method.name,
        "rate": setting.rate,
        "clip": setting.clip,
        "highest": setting.rate == max(setting.method.rates),
        "epsilon": epsilon,
        "init": init,
        "runs": runs,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs/private-results"), help="where the runs themselves go")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--page-only", action="store_true")
    asked = parser.parse_args()
    if not asked.page_only:
        make(search(), figures, BOOK, asked.store, asked.processes)
        make(wanted(), figures, BOOK, asked.store, asked.processes)
    write_page(collect(), Path("docs/private-results.md"), len(SEEDS))


if __name__ == "__main__":
    main()
