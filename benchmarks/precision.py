"""What a bfloat16 base costs in accuracy and saves in time: the default experiment, five seeds, both precisions.

    python -m benchmarks precision                                    # seeds 0 to 4, two runs at a time
    python -m benchmarks precision --seeds 3 strategy=fed_sb --json   # any overrides of the experiment

Each seed has its own partition, head and batches, the same in both precisions, so differences are paired: printed is
their mean with a 95 % interval (Student's t). Accuracy is that of the test split after the last round.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.runs import Book, Job, make

if TYPE_CHECKING:
    from fedlora.server.records import RunHistory

PRECISIONS = ("float32", "bfloat16")


def figures(history: "RunHistory") -> dict[str, Any]:
    """Of one run; validation: what `make` shows."""
    last = history.rounds[-1].metrics
    return {
        "accuracy": history.run.summary["test_accuracy"],
        "validation": last["validation_accuracy"],
        "seconds": sum(one.seconds for one in history.rounds[1:]),
    }


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences."""
    from scipy.stats import t

    mean = statistics.mean(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def told(found: Mapping[str, Mapping[str, Any]], seeds: range) -> str:
    """Markdown."""
    rows = ["| precision of the base | test accuracy, mean ± sd | seconds of a run |", "| --- | --- | --- |"]
    for precision in PRECISIONS:
        mine = [found[f"{precision}-{seed}"] for seed in seeds]
        accuracy = [one["accuracy"] for one in mine]
        seconds = statistics.median(one["seconds"] for one in mine)
        spread = statistics.stdev(accuracy)
        rows.append(f"| {precision} | {statistics.mean(accuracy):.4f} ± {spread:.4f} | {seconds:.1f} |")
    apart = [found[f"bfloat16-{seed}"]["accuracy"] - found[f"float32-{seed}"]["accuracy"] for seed in seeds]
    mean, low, high = interval(apart)
    ratio = [found[f"float32-{seed}"]["seconds"] / found[f"bfloat16-{seed}"]["seconds"] for seed in seeds]
    words = (
        f"bfloat16 − float32: {mean:+.4f} (95 % {low:+.4f} to {high:+.4f}); {statistics.median(ratio):.2f} × as fast"
    )
    return "\n".join([*rows, "", words])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the experiment")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    settings = ("engine=sequential", "train.threads=1", *asked.overrides)
    with tempfile.TemporaryDirectory(prefix="fedlora-precision-") as folder:
        book = Book(Path(folder) / "figures.jsonl")
        jobs = [
            Job(f"{precision}-{seed}", (*settings, f"train.precision={precision}", f"seed={seed}"))
            for seed in seeds
            for precision in PRECISIONS
        ]
        make(jobs, figures, book, Path(folder) / "runs", asked.processes)
        found = book.read()
    print(json.dumps(found) if asked.json else told(found, seeds))


if __name__ == "__main__":
    main()
