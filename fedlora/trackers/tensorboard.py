"""TensorBoard: event files in `tensorboard/` in the run's folder. `tensorboard --logdir runs` shows a whole store."""

import json

from torch.utils.tensorboard import SummaryWriter

from fedlora.trackers.base import End, Figures, Opening, Point

FOLDER = "tensorboard"


class TensorBoard:
    """Scalars by round, and the configuration as a text."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def open(self, opening: Opening) -> None:
        """A run that goes on is written anew into a further file, whose first event makes readers forget the others.

        Those stay: a TensorBoard that follows a file which is deleted never looks for the next.
        """
        self._writer = SummaryWriter(str(opening.folder / FOLDER), purge_step=0 if opening.history else None)
        text = json.dumps(opening.params, indent=2, ensure_ascii=False)
        self._writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()))
        for point in opening.history:
            self.add(point)

    def add(self, point: Point) -> None:
        """One scalar for each figure."""
        self._write(point.figures, point.round, point.time.timestamp())

    def close(self, end: End, summary: Figures, last: int) -> None:
        """Final figures are scalars at the last round."""
        del end
        self._write(summary, last)
        if self._writer is not None:
            self._writer.close()

    def _write(self, figures: Figures, step: int, time: float | None = None) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step, walltime=time)
            self._writer.flush()
