"""What a tracker is asked to do, and what of a run it gets to see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from fedlora.config.track import TrackConfig

Figures = Mapping[str, float]


class End(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Point:
    """What may leave of one committed round. time: of its commit, UTC."""

    round: int
    time: datetime
    figures: Figures


@dataclass(frozen=True)
class Opening:
    """A run that begins or goes on. folder: the run's own; store: the run store's.

    params: the resolved configuration, flat, without machine's paths and sites' names. history: its committed rounds so
    far, oldest first; empty for a new run.
    """

    run: str
    name: str
    strategy: str
    folder: Path
    store: Path
    settings: TrackConfig
    params: Mapping[str, str]
    history: Sequence[Point] = ()


class Tracker(Protocol):
    """Writes one run somewhere else. Called by one thread; whatever it raises costs the run nothing."""

    def open(self, opening: Opening) -> None:
        """Begins, or goes on with, the run; it then has the rounds of `opening.history`, each once, and no others."""
        ...

    def add(self, point: Point) -> None:
        """Adds a committed round."""
        ...

    def close(self, end: End, summary: Figures, last: int) -> None:
        """Ends the run with its final figures, after round `last`. It may be opened again."""
        ...
