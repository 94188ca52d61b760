"""Weights & Biases: by default into the run's folder alone, for `wandb sync` where and when somebody wants it."""

import shutil
from pathlib import Path
from typing import Any

import wandb

from fedlora.errors import ConfigError
from fedlora.trackers.base import End, Figures, Opening, Point

FOLDER = "wandb"


class WeightsAndBiases:
    """History by round; the configuration as config. Nothing else goes out: no host, code, console or packages."""

    def __init__(self) -> None:
        self._run: Any = None
        self._first = 0

    def open(self, opening: Opening) -> None:
        """A run that goes on keeps its id. Offline it is written anew and whole, in place of what was there.

        Raises ConfigError for `track.wandb=online` without a key.
        """
        mode = opening.settings.wandb
        if mode == "online" and not wandb.login(prompt=False):
            raise ConfigError(["track.wandb=online needs a key: `wandb login`, or set WANDB_API_KEY"])
        before = _offline_folders(opening)
        self._run = wandb.init(
            project=opening.settings.project,
            id=opening.run,
            name=f"{opening.name} {opening.run}",
            group=opening.strategy,
            dir=str(opening.folder),
            config=dict(opening.params),
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=_settings(mode),
        )
        for folder in before:
            shutil.rmtree(folder)
        self._first = int(self._run.step) if mode == "online" else 0
        for point in opening.history:
            self.add(point)

    def add(self, point: Point) -> None:
        """One step; the service takes none twice."""
        if point.round >= self._first:
            self._run.log(dict(point.figures), step=point.round)

    def close(self, end: End, summary: Figures, last: int) -> None:
        """Final figures are the run's summary."""
        del last
        if self._run is not None:
            self._run.summary.update({**summary, "status": str(end)})
            self._run.finish(exit_code=1 if end is End.FAILED else 0)


def _settings(mode: str) -> wandb.Settings:
    return wandb.Settings(
        mode=mode,
        console="off",
        silent=True,
        host="",
        username="",
        email="",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        login_timeout=10,
    )


def _offline_folders(opening: Opening) -> list[Path]:
    """What earlier processes left of this run."""
    return sorted((opening.folder / FOLDER).glob(f"offline-run-*-{opening.run}"))
