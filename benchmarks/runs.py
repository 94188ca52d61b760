"""Many runs, a few at a time, whose figures are kept in a file of lines: what was made is not made again."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlora.server.records import RunHistory

Figures = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run: its name, its overrides, and whether one that diverges is a figure (validation 0) or an error."""

    name: str
    overrides: tuple[str, ...]
    may_diverge: bool = False


@dataclass(frozen=True)
class Book:
    """A file of figures, one JSON object a line, each with the run's `name`."""

    path: Path

    def read(self) -> dict[str, Figures]:
        """The figures of each run, by name."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {found["name"]: found for found in map(json.loads, lines)}

    def add(self, found: Figures) -> None:
        """Adds a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(found) + "\n")


def run_job(job: Job, figures: "Callable[[RunHistory], Figures]", store: str) -> Figures:
    """Makes one run, in a process of a pool, and returns its figures.

    Raises RunError if a run diverges that must not.
    """
    from fedlora.config.compose import compose
    from fedlora.errors import RunError
    from fedlora.simulations.simulate import Watch, run

    try:
        history = run(compose([*job.overrides, f"name={job.name}", f"store={store}"]), Watch())
    except RunError as error:
        if not job.may_diverge:
            raise
        return {"name": job.name, "validation": 0.0, "seconds": 0.0, "failed": str(error)}
    return {"name": job.name, **figures(history)}


def make(
    jobs: Iterable[Job], figures: "Callable[[RunHistory], Figures]", book: Book, store: Path, processes: int
) -> None:
    """Makes the runs that are not in `book`, `processes` at a time, one thread each, and notes the figures of each."""
    have = book.read()
    todo: Sequence[Job] = [job for job in dict.fromkeys(jobs) if job.name not in have]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_job, job, figures, str(store)) for job in todo]
        for number, future in enumerate(as_completed(futures), 1):
            try:
                found = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what is wrong is told now, not after the other runs
                raise
            book.add(found)
            print(
                f"[{number}/{len(todo)}] {found['name']}: {found['validation']:.3f} in {found['seconds']:.0f} s",
                flush=True,
            )
