"""fedlora with clients that train nothing: `python -m benchmarks.overhead_fedlora OVERRIDE FOLDER SETTINGS`.

All but the training is the product's. OVERRIDE: the engine. FOLDER: of a `Workload`, whose clients all take part.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.idle import STEP, WARM, Stopwatch, settings_of
from benchmarks.peers.workload import Workload
from benchmarks.simulation import overrides_of


def make_idle(worker: Any, *, adds: bool) -> None:
    """Replaces the training of this process's worker, and of those that are forked from it. adds: see `Settings`."""
    import torch

    from fedlora.training.local import LocalResult, trained_names

    def train(adapted: Any, client: int, round_number: int) -> LocalResult:
        del round_number
        names = trained_names(adapted.manifest)
        if adds:
            with torch.no_grad():
                torch._foreach_add_(adapted.parameters(names), STEP)
        samples = len(worker.rows(client).train)
        tensors = adapted.read(names)
        return LocalResult(
            tensors=tensors, loss=0.5, first_loss=0.5, last_loss=0.5, steps=0, samples=samples, seconds=0.0
        )

    worker.train = train


def main() -> None:
    """One run, as `fedlora simulate` has it."""
    from fedlora.client.worker import worker_for
    from fedlora.config.compose import compose
    from fedlora.server.events import Event, RoundCommitted
    from fedlora.simulations.simulate import Watch, resolve, run
    from fedlora.training.heap import keep_memory

    keep_memory()  # as `fedlora simulate` does
    override, folder, settings = sys.argv[1], Path(sys.argv[2]), settings_of(sys.argv)
    watch = Stopwatch()

    def listen(event: Event) -> None:
        if isinstance(event, RoundCommitted) and event.round <= settings.rounds + WARM:
            watch.mark()

    with tempfile.TemporaryDirectory(prefix="fedlora-idle-") as store:
        # One more, as the last round is measured.
        overrides = overrides_of(Workload.read(folder), settings.rounds + WARM + 1, Path(store))
        workers = [f"engine.workers={settings.workers}"] if override == "engine=processes" else []
        config = resolve(compose([*overrides, override, "engine.group=1", "eval.every=100000", *workers]))
        make_idle(worker_for(config), adds=settings.adds)
        run(config, Watch(listeners=(listen,)))
    watch.tell()


if __name__ == "__main__":
    main()
