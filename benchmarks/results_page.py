"""The page and the figures of `docs/results.md`, from the numbers that `benchmarks.results` collected."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedlora.simulations.compare import Summary, tie

COMMAND = "python -m benchmarks.results"
BUDGETS = {
    "At equal rank": {"fedavg": 8, "ffa_lora": 8, "lora_fair": 8, "fed_sb": 8},
    "At equal bytes": {"fedavg": 4, "ffa_lora": 8, "lora_fair": 4, "fed_sb": 55},
}
PARTITIONS = {"iid": "IID", "dirichlet-0.1": "Dirichlet(0.1)"}
HEAD = (
    "| strategy | r | lr | test accuracy | adapter bytes up a round | head bytes up | sent once | aggregation error"
    " | seconds |\n|---|---|---|---|---|---|---|---|---|"
)

INTRO = """# Results

Made by one command, which goes on where it stopped:

```
{command}
```

MiniLM-L6 (22.7M parameters) on TREC-6 questions, de-duplicated before the split; 10 clients, 5 a round, 12 rounds of
10 steps of 16, AdamW, learning rate falling linearly over the rounds, the head (2,310 numbers) trained and averaged by
all. In the comparison s = 2 for every strategy; the quick start has each strategy's own s. Float32 throughout.

For every cell the learning rate is the best of three on the **validation** split, with a seed of its own: {search}. The
**test** split is read once a run, after its last round, and chooses nothing. Partitions are drawn from the seed
alone, so the runs of one strategy meet the same clients as those of another. Numbers are means ± standard
deviations over the seeds; *a tie* means a difference under two (pooled) standard deviations. Bytes are counted on
the serialised tensors that the five clients of a round send; the aggregation error is ‖ΔW* − B̄Ā‖/‖ΔW*‖, averaged
over the rounds. Seconds are of one run on one core, while other work ran on the machine: an order of magnitude.

{machine}
"""


AGAINST_THE_PAPERS = """## Beside the papers

Read on 2026-11-26, by hand; the command does not rewrite this part.

- LoRA-FAIR's correction brings nothing here: it ties with FedIT everywhere, though its paper sees one to two points on
  image sets with ViT and MLP-Mixer. With few local steps the clients' factors agree, and its un-squared penalty then
  keeps the correction at or near zero (`fair_relative_correction` in each round).
- FFA-LoRA does not collapse under label skew, as others report for many clients and for generation: with ten clients it
  ties with the best at Dirichlet(0.1). On even clients it gives up 0.7 points to FedIT of the same rank.
- Fed-SB at rank 8 sends 1.5 % of FedIT's bytes and is 3 points behind on even clients; at equal bytes (rank 55) it is
  ahead of all. Its start reads no data here, unlike in the paper.
- Under strong skew the partition matters more than the method: standard deviations over partitions are several times
  the differences of the methods, whence the paired differences.
- The aggregation error of 10⁻¹ that FedIT makes costs no accuracy that could be seen here.
"""

Cells = Sequence[dict[str, Any]]


def write_page(quick: Cells, grid: Cells, path: Path, searched: Mapping[str, Sequence[float]]) -> None:
    """Writes the page to `path`; an empty `grid` leaves the comparison out.

    searched: the learning rates that were tried, by strategy.
    """
    search = "; ".join(f"{', '.join(f'{lr:g}' for lr in rates)} for `{name}`" for name, rates in searched.items())
    machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    parts = [INTRO.format(command=COMMAND, search=search, machine=f"{date}: {machine}.")]
    parts += _quickstart(quick)
    if not grid:
        parts.append("The comparison at equal rank and at equal bytes is not here yet: its runs are not all made.\n")
    for title, ranks in BUDGETS.items() if grid else ():
        parts.append(f"## {title}\n")
        for partition, name in PARTITIONS.items():
            cells = [_cell(grid, strategy, rank, partition) for strategy, rank in ranks.items()]
            parts += [f"### {name}\n", _table(cells), _verdict(cells), _paired(cells)]
    parts += [AGAINST_THE_PAPERS] if grid else []
    path.write_text("\n".join(parts).rstrip() + "\n")


def _quickstart(cells: Cells) -> list[str]:
    title = "## The quick start: each strategy at its default rank, Dirichlet(0.5), seeds 0 to 2\n"
    return [title, _table(cells), _verdict(cells)] if cells else []


def _cell(cells: Cells, strategy: str, rank: int, partition: str) -> dict[str, Any]:
    wanted = (strategy, rank, partition)
    return next(cell for cell in cells if (cell["strategy"], cell["rank"], cell["partition"]) == wanted)


def _table(cells: Cells) -> str:
    return "\n".join([HEAD, *map(_row, cells), ""])


def _row(cell: dict[str, Any]) -> str:
    runs = cell["runs"]
    accuracy = accuracy_of(cell)
    mean = {key: sum(run[key] for run in runs) / len(runs) for key in ("up", "head_up", "once", "error", "seconds")}
    fields = (
        f"`{cell['strategy']}`",
        str(cell["rank"]),
        f"{cell['lr']:g}",
        f"**{accuracy.mean:.3f}** ± {accuracy.sd:.3f}",
        f"{mean['up']:,.0f}",
        f"{mean['head_up']:,.0f}",
        f"{mean['once']:,.0f}" if mean["once"] else "–",
        f"{mean['error']:.1e}",
        f"{mean['seconds']:.0f}",
    )
    return "| " + " | ".join(fields) + " |"


def accuracy_of(cell: dict[str, Any]) -> Summary:
    """Mean and standard deviation of the test accuracy over the cell's seeds."""
    return Summary.of([run["test"] for run in cell["runs"]])


def _paired(cells: Cells) -> str:
    """Each strategy's difference from FedIT on the same partition and seed: mean ± sd."""
    first = next(cell for cell in cells if cell["strategy"] == "fedavg")
    lines = []
    for cell in cells:
        if cell is not first:
            pairs = zip(cell["runs"], first["runs"], strict=True)
            found = Summary.of([mine["test"] - theirs["test"] for mine, theirs in pairs])
            lines.append(f"`{cell['strategy']}` {found.mean:+.3f} ± {found.sd:.3f}")
    return f"Difference from `fedavg` on the same clients: {', '.join(lines)}.\n"


def _verdict(cells: Cells) -> str:
    """Which differences from the best are more than chance."""
    ranked = sorted(cells, key=lambda cell: -accuracy_of(cell).mean)
    best = ranked[0]
    tied = [f"`{c['strategy']}`" for c in ranked[1:] if tie(accuracy_of(best), accuracy_of(c))]
    behind = [f"`{c['strategy']}`" for c in ranked[1:] if not tie(accuracy_of(best), accuracy_of(c))]
    text = f"Highest mean: `{best['strategy']}`"
    text += f"; a tie with {', '.join(tied)}" if tied else ""
    text += f"; ahead of {', '.join(behind)} by two standard deviations or more" if behind else ""
    return text + ".\n"
