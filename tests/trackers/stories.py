"""A run's folder and events as a server leaves them, without any training."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fedlora.config.track import TrackConfig
from fedlora.server.events import (
    FILE,
    Emitter,
    EventLog,
    Listener,
    RoundCommitted,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
)
from fedlora.server.records import RunInfo
from fedlora.server.store import RunStore

SITES = ("ward-1", "ward-2", "ward-3")
SECRET = "geheim"  # noqa: S105 - no password


def load_samples() -> ModuleType:
    """`tests/server/samples.py`."""
    spec = importlib.util.spec_from_file_location("samples", Path(__file__).parents[1] / "server" / "samples.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Story:
    """One run, told to listeners by a process after another. tell: events of one process."""

    store: RunStore
    run: RunInfo
    samples: ModuleType

    def emit(self, listeners: Sequence[Listener], tell: Callable[[Emitter], None]) -> None:
        """As one process does it."""
        with EventLog(self.run.folder / FILE) as log:
            tell(Emitter(log, listeners))

    def begin(self, emit: Emitter) -> None:
        """A new run."""
        emit(RunStarted(**self._facts()))

    def resume(self, emit: Emitter, after: int) -> None:
        """A run that goes on."""
        emit(RunResumed(**self._facts(), round=after))

    def rounds(self, emit: Emitter, *numbers: int, shift: float = 0.0) -> None:
        """Commits rounds; shift: added to the accuracy, to tell one time from another."""
        for number in numbers:
            record = self.samples.record(number)
            accuracy = record.metrics["validation_accuracy"] + shift
            record = replace(record, metrics={**record.metrics, "validation_accuracy": accuracy})
            emit(RoundCommitted.of(self.run.id, record, rounds=5))

    def finish(self, emit: Emitter, last: int = 5) -> None:
        """The end."""
        summary = {"test_accuracy": 0.75, "bytes_up": 1000.0, "seconds": 9.0}
        emit(RunFinished(run=self.run.id, round=last, rounds=5, summary=summary, seconds=1.0))

    def stop(self, emit: Emitter, last: int) -> None:
        """A stop."""
        emit(RunStopped(run=self.run.id, round=last, rounds=5, reason="on request", seconds=1.0))

    def fail(self, emit: Emitter, last: int) -> None:
        """A failure."""
        emit(RunFailed(run=self.run.id, round=last, rounds=5, error="RunError", reason="x", seconds=1.0))

    def _facts(self) -> dict[str, Any]:
        return {
            "run": self.run.id,
            "name": self.run.name,
            "strategy": self.run.strategy,
            "rounds": 5,
            "clients": 3,
            "cohort": 3,
            "engine": "test",
            "folder": str(self.run.folder),
        }

    def interrupted(self, listeners: Callable[[], Sequence[Listener]]) -> None:
        """Two processes: the first stops after round 3, of which only 0 to 2 count; the second runs 3 to 5."""

        def first(emit: Emitter) -> None:
            self.begin(emit)
            self.rounds(emit, 0, 1, 2)
            self.rounds(emit, 3, shift=0.2)
            self.stop(emit, 3)

        def second(emit: Emitter) -> None:
            self.resume(emit, 2)
            self.rounds(emit, 3, 4, 5)
            self.finish(emit)

        self.emit(listeners(), first)
        self.emit(listeners(), second)


EXPECTED = {number: 0.5 + number / 100 for number in range(6)}
"""The accuracy by round, of a whole run."""


def story(store: RunStore, privacy: str = "none") -> Story:
    """A new run of three sites."""
    samples = load_samples()
    noise = {} if privacy == "none" else {"noise_multiplier": 1.0}
    config = samples.config(
        store=store.folder,
        federation={"clients": 3, "cohort": 3, "rounds": 5, "sites": SITES},
        data={
            "source": "local",
            "name": "rows",
            "path": f"/data/{SECRET}.csv",
            "text": "t",
            "label": "l",
            "partition": {"name": "iid"},
        },
        privacy={"name": privacy, **noise},
    )
    return Story(store, store.create(config, name="first"), samples)


def settings(*trackers: str, **more: Any) -> TrackConfig:
    """`track` of a configuration."""
    return TrackConfig.model_validate({"to": trackers, **more})
