"""`fedlora simulate`, behind its command line: one run or a sweep, watched and summed up."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError, RunError
from fedlora.privacy.account import promised, read_account
from fedlora.server.clock import VIRTUAL_SECONDS
from fedlora.server.records import Outcome, RoundRecord, RunHistory, RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.compare import privacy_together
from fedlora.simulations.progress import LiveProgress, quality
from fedlora.simulations.results import ADAPTER, REPORT
from fedlora.simulations.simulate import Watch, resume, run
from fedlora.training.heap import keep_memory
from fedlora.words import bytes_text, seconds_text


class GracefulStop:
    """Ctrl-C once: stop after the round that is running. Twice: stop now; that round is then run again on resume."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._console.print("stopping after this round's checkpoint; Ctrl-C again stops at once", style="yellow")

    def install(self) -> Mapping[signal.Signals, Any]:
        """Handles SIGINT and SIGTERM from now on; returns what handled them before."""
        return {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    @contextmanager
    def installed(self) -> Iterator["GracefulStop"]:
        """Handles SIGINT and SIGTERM within the block."""
        previous = self.install()
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


_sweep_stop = GracefulStop(Console(quiet=True))
"""Of a sweep's worker process, for all of its runs: one that was queued before Ctrl-C must not begin after it."""


def simulate_one(config: RunConfig, console: Console) -> RunHistory:
    """One new run, shown live on `console`."""
    return _watched(console, lambda watch: run(config, watch))


def resume_one(store_folder: Path, name: str, rounds: int | None, console: Console) -> RunHistory:
    """A run of the store goes on, shown live on `console`.

    Raises UnknownRunError, ConfigError for fewer rounds than there are, and what the run raises.
    """
    with RunStore.open(store_folder, create=False) as store:
        info = store.find(name)
        if rounds is not None and rounds < info.rounds_done:
            raise ConfigError(
                [f"federation.rounds={rounds}: run {info.id} has done {info.rounds_done}: give at least as many"]
            )
        if info.status is RunStatus.FINISHED and (rounds is None or rounds == info.rounds):
            raise RunError(
                f"run {info.id} is finished: all {info.rounds} rounds are done. Give more, e.g."
                f" federation.rounds={info.rounds + 5}"
            )
        if info.status is RunStatus.FINISHED:
            console.print(
                f"run {info.id} was finished: the learning rate follows the schedule of {rounds} rounds from now on,"
                " and the test split is read once more",
                style="yellow",
            )
        return _watched(console, lambda watch: resume(store, info, watch, rounds=rounds))


def _watched(console: Console, work: Callable[[Watch], RunHistory]) -> RunHistory:
    keep_memory()
    stop = GracefulStop(console)
    with LiveProgress(console) as progress, stop.installed():
        return work(Watch(listeners=(progress,), stop=stop))


def simulate_sweep(configs: Sequence[RunConfig], sweep: str, jobs: int, console: Console) -> list[RunHistory]:
    """All of a sweep's runs, `jobs` at a time in processes of their own, in the order given.

    A run that fails does not end the others; RunError names the failed ones at the end. Ctrl-C lets the runs that are
    under way end after their next checkpoint, and begins no further ones.
    """
    shared = [_fit_cores(config, jobs) for config in configs]
    found: dict[int, RunHistory] = {}
    failed: dict[int, BaseException] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn"), _prepare_worker) as pool:
        futures = {pool.submit(_sweep_run, config, sweep): number for number, config in enumerate(shared)}
        try:
            for future in as_completed(futures):
                number, error = futures[future], future.exception()
                if error is None:
                    found[number] = future.result()
                else:
                    failed[number] = error
                said = f"failed: {error}" if error else outcome_line(found[number])
                console.print(f"[{len(found) + len(failed)}/{len(configs)}] {said}", markup=False)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed:
        first = next(iter(failed.values()))
        raise RunError(f"{len(failed)} of {len(configs)} runs of sweep {sweep} failed; the first: {first}")
    together = privacy_together(found.values())
    if together:
        console.print(together, style="yellow", markup=False)
    return [found[number] for number in sorted(found)]


def _fit_cores(config: RunConfig, jobs: int) -> RunConfig:
    """`config` with the cores divided among the jobs, unless it says itself how to use them."""
    if jobs == 1 or config.engine.name != "auto":
        return config
    threads = config.train.threads or max(1, len(os.sched_getaffinity(0)) // jobs)
    train = config.train.model_copy(update={"threads": threads})
    engine = config.engine.model_copy(update={"name": "sequential", "workers": None})
    return config.model_copy(update={"train": train, "engine": engine})


def _prepare_worker() -> None:
    keep_memory()
    _sweep_stop.install()


def _sweep_run(config: RunConfig, sweep: str) -> RunHistory:
    if _sweep_stop():
        raise RunError(f"sweep {sweep} was stopped before this run began")
    return run(config, Watch(stop=_sweep_stop), sweep=sweep)


def outcome_line(history: RunHistory) -> str:
    """One line: the run, how it ended, its main figure."""
    figure = quality(history.run.summary, "test") or quality(history.rounds[-1].metrics if history.rounds else {})
    return f"{history.run.id}  {history.run.status}  {figure}"


def show_summary(history: RunHistory, console: Console) -> None:
    """The outcome, the figures and the paths, after one run."""
    info = history.run
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in _summary_rows(history).items():
        table.add_row(f"[dim]{name}[/]", value)
    style = {RunStatus.FINISHED: "green", RunStatus.STOPPED: "yellow"}.get(info.status, "red")
    console.print(f"\n[bold {style}]{info.status}[/]: {info.rounds_done} of {info.rounds} rounds", highlight=False)
    console.print(table, highlight=False)
    if info.status is RunStatus.STOPPED:
        console.print(f"continue with: fedlora simulate --resume {info.id}", highlight=False)


def _summary_rows(history: RunHistory) -> Mapping[str, str]:
    info, rounds = history.run, history.rounds
    refused = sum(row.outcome is not Outcome.REPORTED for record in rounds for row in record.roster)
    up, down, once = (sum(getattr(r, name) for r in rounds) for name in ("bytes_up", "bytes_down", "bytes_once"))
    rows = {
        "test": quality(info.summary, "test"),
        "validation": quality(rounds[-1].metrics) if rounds else "",
        "clients": quality(rounds[-1].metrics, "clients") if rounds else "",
        "sent": f"{bytes_text(up)} up, {bytes_text(down)} down" + (f", {bytes_text(once)} once" if once else ""),
        "refused": f"{refused} answers, see the report" if refused else "",
        "time": f"{sum(record.seconds for record in rounds):.1f} s in {max(0, len(rounds) - 1)} rounds",
        "virtual time": _virtual(rounds),
        "adapter": _from_here(info.folder / ADAPTER) if info.status is RunStatus.FINISHED else "",
        "report": _from_here(info.folder / REPORT) if info.status is RunStatus.FINISHED else "",
        "run": _from_here(info.folder),
        "privacy": _privacy(info),
    }
    return {name: value for name, value in rows.items() if value}


def _virtual(rounds: Sequence[RoundRecord]) -> str:
    time = rounds[-1].metrics.get(VIRTUAL_SECONDS) if rounds else None
    return "" if time is None else seconds_text(time)


def _privacy(info: RunInfo) -> str:
    """What was spent; for a run that has not finished, what it promised."""
    account = read_account(info.folder) or promised(RunConfig.model_validate_json(info.config))
    return account.sentence()


def _from_here(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def as_json(history: RunHistory) -> dict[str, Any]:
    """The run for a script: identity, outcome, figures, paths, and each round's metrics."""
    info = history.run
    return {
        "id": info.id,
        "name": info.name,
        "status": str(info.status),
        "strategy": info.strategy,
        "seed": info.seed,
        "rounds": info.rounds,
        "rounds_done": info.rounds_done,
        "folder": str(info.folder),
        "adapter": str(info.folder / ADAPTER),
        "summary": dict(info.summary),
        "history": [
            {k: v for k, v in asdict(r).items() if k not in ("roster", "committed_at")} for r in history.rounds
        ],
    }
