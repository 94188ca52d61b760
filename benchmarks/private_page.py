"""The page and the figure of `docs/private-results.md`, from what `benchmarks.private_results` collected."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from fedlora.simulations.compare import Summary, tie

Row = dict[str, Any]
MAJORITY = 249 / 1076
"""The share of the most frequent of TREC's six labels in the test split (de-duplicated)."""

INTRO = """# Private results

Made by one command, which goes on where it stopped:

```
python -m benchmarks.private_results
```

`experiment=private`: MiniLM-L6 on TREC-6 questions, de-duplicated before the split; two clients with 1,937 or 1,938
questions each (IID), both in every one of 5 rounds of 4 steps; local DP-SGD with AdamW. Each step draws every question
with q = 0.132, 256 expected, which is also the public divisor. The unit is a **record** (a question), adjacency is add
or remove one, δ = 1e-5, noise from the operating system, accountant PLD. ε is what each client spends over the whole
run. It is *simulated*: the clients are one process.

Learning rate and clip C are the best of twelve pairs for each method on the **validation** split at ε = 3, with a seed
of its own (that search is not in the ε: it would have to be, on data that are really private; the validation split here
is public). Without DP the rate is the best of the same four. The **test** split is read once a run. Numbers are
means ± standard deviations over {seeds} seeds, *a tie* means a difference under two pooled standard deviations. *head
only* trains no adapter; *majority* always says the most frequent label.

{machine}
"""


def write_page(rows: Sequence[Row], path: Path, seeds: int) -> None:
    """Writes the page to `path`, and the figure beside it. Rows without all of their seeds say so."""
    parts = [INTRO.format(seeds=seeds, machine=made_on(rows))]
    by_epsilon = [row for row in rows if row["init"] == "weights"]
    parts += [
        "## Accuracy against ε\n",
        "![Test accuracy against ε](private-results.svg)\n",
        *accuracy_table(by_epsilon),
    ]
    parts += ["", "## What each cell is\n", *mechanism_table(by_epsilon), "", "## The four starts of Fed-SB\n"]
    parts += starts_table([row for row in rows if row["method"] == "fed_sb" and row["epsilon"] == 3.0])
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    draw(by_epsilon, path.with_suffix(".svg"))


def made_on(rows: Sequence[Row]) -> str:
    """Which cells were made on which machine."""
    columns: dict[str, dict[str, None]] = {}
    for row in rows:
        for run in row["runs"]:
            columns.setdefault(run["machine"], {})[label(row["epsilon"])] = None
    return "Made on: " + "; ".join(f"{machine} ({', '.join(cells)})" for machine, cells in columns.items()) + "."


def accuracy(row: Row) -> Summary | None:
    """Test accuracy over the seeds that were run."""
    found = [run["test"] for run in row["runs"] if run.get("test") is not None]
    return Summary.of(found) if found else None


def text(row: Row, seeds: int = 5) -> str:
    """Mean ± sd, and of how many seeds if they are not all."""
    found = accuracy(row)
    if found is None:
        return "not run yet"
    spread = "" if found.sd is None else f" ± {found.sd:.3f}"
    return f"{found.mean:.3f}{spread}" + ("" if found.n == seeds else f" ({found.n} of {seeds} seeds)")


def accuracy_table(rows: Sequence[Row]) -> list[str]:
    """Methods down, ε across."""
    epsilons = list(dict.fromkeys(row["epsilon"] for row in rows))
    lines = [f"| method | {' | '.join(label(epsilon) for epsilon in epsilons)} |", "|---" * (len(epsilons) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [text(row) for row in rows if row["method"] == method]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines.append(f"| majority | {' | '.join([f'{MAJORITY:.3f}'] * len(epsilons))} |")
    return [*lines, "", *verdicts(rows), *edges(rows)]


def edges(rows: Sequence[Row]) -> list[str]:
    """Which of the chosen rates are the highest of their grid: a wider one might find a better."""
    at_edge = [f"{row['method']} ({label(row['epsilon'])})" for row in rows if row["highest"]]
    return [f"- the chosen rate is the highest of the grid, and a higher one might do better: {', '.join(at_edge)}"][
        : len(at_edge)
    ]


def label(epsilon: float | None) -> str:
    """A column's title."""
    return "without DP" if epsilon is None else f"ε = {epsilon:g}"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """For each ε: the best mean, and who ties with it."""
    lines = []
    for epsilon in dict.fromkeys(row["epsilon"] for row in rows):
        found = [(row["method"], summary) for row in rows if row["epsilon"] == epsilon and (summary := accuracy(row))]
        if found:
            best = max(found, key=lambda pair: pair[1].mean)
            ties = [name for name, summary in found if name != best[0] and tie(summary, best[1])]
            lines.append(
                f"- {label(epsilon)}: highest mean `{best[0]}`" + (f"; a tie with {', '.join(ties)}" if ties else "")
            )
    return lines


def mechanism_table(rows: Sequence[Row]) -> list[str]:
    """N, δ, q, σ, C, unit, adjacency and what was spent, beside each number."""
    lines = [
        "| method | ε asked | ε spent | N a client | δ | q | σ | C | steps | unit | adjacency | lr | accuracy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["runs"] and row["epsilon"]:
            first = row["runs"][0]
            f = first["privacy"]
            lines.append(
                f"| {row['method']} | {row['epsilon']:g} | {first['spent']:.3f} | 1,937 | {f['delta']:g} |"
                f" {f['rate']:g} | {f['noise_multiplier']:.4f} | {f['clip']:g} |"
                f" {f['steps'] * f['participations']} | record | {f['adjacency']} | {row['rate']:g} | {text(row)} |"
            )
    return lines


def starts_table(rows: Sequence[Row]) -> list[str]:
    """Fed-SB's initialisations at the same total ε."""
    lines = ["| start | costs | test accuracy at ε = 3 in all |", "|---|---|---|"]
    costs = {
        "weights": "nothing (SVD of the base weights)",
        "random": "nothing",
        "public": "nothing, but needs public rows (here: the validation split)",
        "private": "one release of the run's ε",
    }
    return [
        *lines,
        *(f"| `{row['init']}` | {costs[row['init']]} | {text(row)} |" for row in rows),
        "",
        *starts_verdict(rows),
    ]


def starts_verdict(rows: Sequence[Row]) -> list[str]:
    """Whether `private` wins anywhere."""
    found = {row["init"]: summary for row in rows if (summary := accuracy(row))}
    if set(found) != {"weights", "random", "public", "private"}:
        return []
    free = max(("weights", "random"), key=lambda init: found[init].mean)
    if found["private"].mean > found[free].mean and not tie(found["private"], found[free]):
        return [f"`private` is ahead of `{free}`, the better start that costs nothing."]
    return [f"`private` does not win: it stays experimental. The better start that costs nothing is `{free}`."]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against ε, one line a method."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        points = [(row["epsilon"], s) for row in rows if row["method"] == method and (s := accuracy(row))]
        private = [(epsilon, s) for epsilon, s in points if epsilon]
        open_ones = [(12.0, s) for epsilon, s in points if not epsilon]
        shown = [*private, *open_ones]
        axes.errorbar(
            [x for x, _ in shown],
            [s.mean for _, s in shown],
            [s.sd or 0 for _, s in shown],
            label=method,
            marker="osD^v"[number],
            capsize=2,
        )
    axes.axhline(MAJORITY, color="grey", linestyle=":", label="majority")
    axes.set_xscale("log")
    axes.set_xticks([1, 3, 8, 12], ["1", "3", "8", "no DP"])
    axes.minorticks_off()
    axes.set_xlabel("ε of each client over the run (δ = 1e-5, per record, simulated)")
    axes.set_ylabel("test accuracy")
    axes.legend(fontsize="small", ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
