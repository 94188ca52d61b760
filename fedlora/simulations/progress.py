"""What a person sees while a run goes on: one line a round as it is committed, and a bar for the rest."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fedlora.server.clock import VIRTUAL_SECONDS
from fedlora.server.events import (
    ClientRefused,
    ClientReported,
    Event,
    RoundCommitted,
    RoundRetried,
    RoundStarted,
    RunFailed,
    RunResumed,
    RunStarted,
    RunStopped,
)
from fedlora.words import bytes_text, seconds_text

COLUMNS = "{:>7}  {:>8}  {:>10}  {:>12}  {:>9}  {:>9}  {:>10}  {:>6}  {:>6}"
HEADINGS = ("round", "reported", "train loss", "validation", "up", "down", "agg. error", "time", "left")
QUALITY = ("accuracy", "token_accuracy", "loss")
"""The metric shown for the global model: the first of these that the task measures."""


class LiveProgress:
    """A listener and a context manager that prints a run to `console`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("loading model and data", total=None)
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            RunStarted: self._opened,
            RunResumed: self._opened,
            RoundStarted: self._round_started,
            ClientReported: self._client_done,
            ClientRefused: self._client_refused,
            RoundRetried: self._retried,
            RoundCommitted: self._committed,
            RunStopped: self._stopped,
            RunFailed: self._stopped,
        }

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _opened(self, event: RunStarted | RunResumed) -> None:
        after = f", resumed after round {event.round}" if isinstance(event, RunResumed) else ""
        self.console.print(
            f"[bold]{event.run}[/]  {event.strategy}, {event.clients} clients, {event.cohort} a round,"
            f" {event.rounds} rounds, {event.engine}{after}"
        )
        self.console.print(COLUMNS.format(*HEADINGS), style="dim", highlight=False)

    def _round_started(self, event: RoundStarted) -> None:
        description = f"round {event.round} of {event.rounds}"
        self._bar.reset(self._task, total=len(event.cohort), description=description)

    def _client_done(self, event: ClientReported) -> None:
        del event
        self._bar.advance(self._task)

    def _client_refused(self, event: ClientRefused) -> None:
        self._bar.advance(self._task)
        row = event.row
        self.console.print(f"  client {row.client} {row.outcome}: {row.reason}", style="yellow", markup=False)

    def _committed(self, event: RoundCommitted) -> None:
        cells = (
            f"{event.round}/{event.rounds}",
            f"{event.reported}/{event.reported + event.refused}",
            _number(event.metrics.get("train_loss"), "{:.3f}"),
            quality(event.metrics) or quality(event.metrics, "clients"),
            bytes_text(event.bytes_up),
            bytes_text(event.bytes_down + event.bytes_once),
            _number(event.metrics.get("aggregation_error"), "{:.2e}"),
            f"{event.seconds:.1f}s",
            "" if event.eta_seconds is None else f"{event.eta_seconds:.0f}s",
        )
        self.console.print(COLUMNS.format(*cells) + _virtual(event), highlight=False)
        self._bar.reset(self._task, total=None, description="next round")

    def _retried(self, event: RoundRetried) -> None:
        said = f"  round {event.round} is tried again in {event.wait:g} s: {event.reason}"
        self.console.print(said, style="yellow", markup=False)

    def _stopped(self, event: RunStopped | RunFailed) -> None:
        del event
        self._bar.stop()


def quality(metrics: Mapping[str, float], split: str = "validation") -> str:
    """The global model's main figure on `split`, e.g. "acc 0.912", or "" if it was not measured."""
    for name in QUALITY:
        value = metrics.get(f"{split}_{name}")
        if value is not None:
            return f"{name.replace('accuracy', 'acc').replace('_', ' ')} {value:.3f}"
    return ""


def _virtual(event: RoundCommitted) -> str:
    """The virtual clock, in a run that has one."""
    time = event.metrics.get(VIRTUAL_SECONDS)
    return "" if time is None else f"  virtual {seconds_text(time)}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
