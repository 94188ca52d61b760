"""What a tracker gets to see of a run: its configuration, its committed rounds, and no more than is released."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlora.config.schema import RunConfig
from fedlora.config.track import TrackConfig
from fedlora.errors import StoreError
from fedlora.server.events import FILE, RoundCommitted, RunResumed, RunStarted, read_events
from fedlora.server.store.folders import CONFIG
from fedlora.trackers.base import Figures, Opening, Point

_OWN = ("store", "output", "model.path", "data.path", "privacy.ledgers", "federation.sites")
"""Keys that are places on this machine, or say who takes part."""

_COUNTS = {
    "reported": "clients_reported",
    "refused": "clients_refused",
    "bytes_up": "bytes_up",
    "bytes_down": "bytes_down",
    "bytes_once": "bytes_once",
    "seconds": "round_seconds",
}
"""Figures of a round beside its metrics, and their names here. Under central DP they tell how many reported."""


def opening(event: RunStarted | RunResumed, settings: TrackConfig) -> Opening:
    """The run that `event` begins or goes on with. Raises StoreError if its folder cannot be read."""
    folder = Path(event.folder)
    config = config_of(folder)
    return Opening(
        run=event.run,
        name=event.name,
        strategy=event.strategy,
        folder=folder,
        store=config.store.resolve(),
        settings=settings,
        params=params(config),
        history=history(folder, config, event.round) if isinstance(event, RunResumed) else (),
    )


def config_of(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`. Raises StoreError if it cannot be read."""
    try:
        return RunConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"the configuration {folder / CONFIG} cannot be read: {error}") from error


def params(config: RunConfig) -> Mapping[str, str]:
    """Dotted key → value as JSON has it, text as it is; without places on this machine and names of sites."""
    flat = dict(_flat("", config.model_dump(mode="json")))
    return {key: value for key, value in flat.items() if key not in _OWN and not key.startswith("track.")}


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def point(event: RoundCommitted, config: RunConfig) -> Point:
    """What may leave of a committed round."""
    counts = {} if config.privacy.name == "central" else {name: getattr(event, key) for key, name in _COUNTS.items()}
    return Point(event.round, event.time, {**event.metrics, **{name: float(value) for name, value in counts.items()}})


def released(summary: Figures, config: RunConfig) -> Figures:
    """What may leave of a run's final figures."""
    from fedlora.simulations.results import may_leave  # loads torch, which a run that ends has

    return may_leave(config, summary)


def history(folder: Path, config: RunConfig, last: int) -> Sequence[Point]:
    """The committed rounds up to `last`, oldest first: as the event log tells them, without what became void; a round
    that was committed and not told, as its checkpoint does.

    Raises StoreError if they cannot be read.
    """
    told: dict[int, Point] = {}
    for event in read_events(folder / FILE):
        if isinstance(event, RoundCommitted):
            told[event.round] = point(event, config)
        elif isinstance(event, RunResumed):
            told = {number: found for number, found in told.items() if number <= event.round}
    numbers = range(last + 1)
    return [found for number in numbers if (found := told.get(number) or _saved(folder, number, config)) is not None]


def _saved(folder: Path, number: int, config: RunConfig) -> Point | None:
    """Round `number` by its checkpoint, without what only the event tells; None if there is none."""
    from fedlora.server.checkpoint import round_folder

    path = round_folder(folder, number) / "metrics.json"
    if not path.is_file():
        return None
    try:
        saved, time = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
        counts = {} if config.privacy.name == "central" else {n: saved[k] for k, n in _COUNTS.items() if k in saved}
        figures = {name: float(value) for name, value in {**saved["metrics"], **counts}.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the figures {path} cannot be read: {error}") from error
    return Point(number, datetime.fromtimestamp(time, UTC), figures)
