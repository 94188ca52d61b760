"""Makes `docs/results.md`: four strategies on TREC-6, at equal rank and at equal bytes, on even and on skewed clients.

    python -m benchmarks.results                 # every run that was not made yet, then the page
    python -m benchmarks.results --page-only     # the page, from the runs that are there
    python -m benchmarks.results --quickstart    # only the default experiment, seeds 0 to 2

For each cell the learning rate is the best of a grid, of the same size for all, on the validation split with a seed of
its own; then five seeds run with it, whose partitions are the same for every strategy. The test split is read once a
run, after its last round, and chooses nothing. The figures of finished runs are kept in `docs/results.jsonl`: the
command goes on where it stopped.
"""

import argparse
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results_page import write_page
from benchmarks.runs import Book, Job, make

if TYPE_CHECKING:
    from fedlora.server.records import RunHistory

STRATEGIES = ("fedavg", "ffa_lora", "lora_fair", "fed_sb")
GRIDS = {
    # Three each, about where a first search (`first-search-…` in docs/results.jsonl: 1e-3 to 1e-1) was best.
    "fedavg": (3e-3, 1e-2, 3e-2),
    "lora_fair": (3e-3, 1e-2, 3e-2),
    "ffa_lora": (1e-2, 3e-2, 1e-1),
    "fed_sb": (1e-2, 3e-2, 1e-1),
}
SEEDS = range(5)
QUICK = "dirichlet-0.5"
RUNS = Book(Path("docs/results.jsonl"))
SEARCH_SEED = 1000
PARTITIONS = {
    "iid": ("data/partition=iid",),
    "dirichlet-0.1": ("data/partition=dirichlet", "data.partition.alpha=0.1"),
    "dirichlet-0.5": ("data/partition=dirichlet", "data.partition.alpha=0.5"),
}
RANKS = {
    # MiniLM's query and value are 384 × 384: an update of rank r is 768·r numbers a module for A and B, 384·r for B
    # alone, r² for R. Equal bytes: 3,072 numbers a module (3,025 for Fed-SB, which cannot be nearer).
    "equal-rank": {"fedavg": 8, "ffa_lora": 8, "lora_fair": 8, "fed_sb": 8},
    "equal-bytes": {"fedavg": 4, "ffa_lora": 8, "lora_fair": 4, "fed_sb": 55},
    "defaults": {"fedavg": 8, "ffa_lora": 8, "lora_fair": 8, "fed_sb": 64},
}
SCALING = 2.0  # one s for all: the learning rate is searched for each, the scaling is not


@dataclass(frozen=True)
class Cell:
    """One strategy at one rank on one partition."""

    strategy: str
    rank: int
    partition: str
    scaling: float | None  # None: the strategy's own

    def overrides(self, lr: float, seed: int) -> list[str]:
        """The experiment as Hydra overrides."""
        return [
            f"strategy={self.strategy}",
            f"adapter.r={self.rank}",
            *([] if self.scaling is None else [f"adapter.scaling={self.scaling}"]),
            f"train.lr={lr}",
            f"seed={seed}",
            "train.threads=1",
            "engine=sequential",
            "eval.every=12",
            f"eval.test={'false' if seed == SEARCH_SEED else 'true'}",
            *PARTITIONS[self.partition],
        ]

    def run_name(self, lr: float, seed: int) -> str:
        """The run's name in the store."""
        scaling = "" if self.scaling is None else f"-x{self.scaling:g}"
        return f"{self.partition}-{self.strategy}-r{self.rank}{scaling}-lr{lr:g}-s{seed}"


def job_of(cell: Cell, lr: float, seed: int) -> Job:
    """One run to make; a learning rate that diverges in the search is out."""
    return Job(cell.run_name(lr, seed), tuple(cell.overrides(lr, seed)), may_diverge=seed == SEARCH_SEED)


def figures(history: "RunHistory") -> dict[str, Any]:
    """What the page needs of one run."""
    trained = history.rounds[1:]
    last = trained[-1]
    return {
        "validation": last.metrics["validation_accuracy"],
        "test": history.run.summary.get("test_accuracy"),
        "up": sum(r.bytes_up - r.bytes_up_head for r in trained) / len(trained),
        "head_up": sum(r.bytes_up_head for r in trained) / len(trained),
        "once": sum(r.bytes_once for r in history.rounds),
        "error": statistics.fmean(r.metrics["aggregation_error"] for r in trained if "aggregation_error" in r.metrics),
        "seconds": sum(r.seconds for r in trained),
    }


def best_rates(cells: Sequence[Cell]) -> dict[Cell, float]:
    """The learning rate of each cell with the best validation accuracy after the last round (the lower, if equal)."""
    have = RUNS.read()
    return {
        cell: max(
            GRIDS[cell.strategy], key=lambda lr, cell=cell: (have[cell.run_name(lr, SEARCH_SEED)]["validation"], -lr)
        )  # type: ignore[misc]
        for cell in cells
    }


def cells_of(budgets: Iterable[str], partitions: Iterable[str]) -> list[Cell]:
    """All cells, those that two budgets share once."""
    scalings = dict.fromkeys(RANKS, SCALING) | {"defaults": None}
    cells = [Cell(s, RANKS[b][s], p, scalings[b]) for b in budgets for p in partitions for s in STRATEGIES]
    return list(dict.fromkeys(cells))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs/results"), help="where the runs themselves go")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--quickstart", action="store_true")
    asked = parser.parse_args()
    quick = cells_of(["defaults"], [QUICK])
    grid = [] if asked.quickstart else cells_of(["equal-rank", "equal-bytes"], ["iid", "dirichlet-0.1"])
    if not asked.page_only:
        cells = quick + grid
        searched = (job_of(cell, lr, SEARCH_SEED) for cell in cells for lr in GRIDS[cell.strategy])
        make(searched, figures, RUNS, asked.store, asked.processes)
        rates = best_rates(cells)
        seeds = (job_of(cell, rates[cell], seed) for cell in cells for seed in seeds_of(cell))
        make(seeds, figures, RUNS, asked.store, asked.processes)
    write_page(collect(quick), collect(grid), Path("docs/results.md"), GRIDS)


def seeds_of(cell: Cell) -> Iterable[int]:
    """The default experiment has three seeds, the comparison five."""
    return range(3) if cell.partition == QUICK else SEEDS


def collect(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The figures of each cell's seeds at its best learning rate."""
    have, rates = RUNS.read(), best_rates(cells)
    return [
        {
            "strategy": cell.strategy,
            "rank": cell.rank,
            "partition": cell.partition,
            "lr": rates[cell],
            "runs": [have[cell.run_name(rates[cell], seed)] for seed in seeds_of(cell)],
        }
        for cell in cells
    ]


if __name__ == "__main__":
    main()
