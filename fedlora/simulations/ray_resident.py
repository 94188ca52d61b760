"""What lives in a Ray actor: one resident worker, which serves one call at a time."""

import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters.manifest import Manifest
from fedlora.client.app import app
from fedlora.client.group import answer_group
from fedlora.client.ledgers import simulate_in
from fedlora.client.site import SimulatedSite
from fedlora.client.worker import Worker, worker_for
from fedlora.config.schema import RunConfig
from fedlora.errors import FedloraError, RunError
from fedlora.flower_internals import identify
from fedlora.simulations.parcels import Letter, Outcome, Packer, array_bytes, read_arrays, read_letter, write_outcome
from fedlora.simulations.virtual import Clients
from fedlora.training.evaluate import Shard
from fedlora.training.heap import keep_memory
from fedlora.wire import read_tensors


class Resident:
    """One device's worker. All that goes in and out is plain: see `parcels`.

    config: a `RunConfig` as JSON, as virtual clients get it. folder: what relative paths in it begin at, where that
    exists. mark: a file beside the ledgers, which this process must see; "": there are none.
    """

    def __init__(self, config: str, folder: str, mark: str) -> None:
        self._config = RunConfig.model_validate_json(config)
        self._folder, self._mark = Path(folder), mark

    def load(self) -> str:
        """Loads model and data; "", or why that cannot be, for people."""
        keep_memory()
        try:
            if self._folder.is_dir():
                os.chdir(self._folder)
            self._find_ledgers()
            self._worker.load_all()
        except FedloraError as error:
            return str(error)
        return ""

    def answer(self, letters: Sequence[Letter], *blobs: bytes) -> tuple[list[Outcome], list[bytes]]:
        """The outcomes of a group's letters, and the arrays in them that are not among `blobs`."""
        identify(letters[0]["run"])
        packer = Packer(map(read_arrays, blobs))
        pairs = [read_letter(letter, packer.records) for letter in letters]
        called = self._clients.answer([message for message, _ in pairs], [context for _, context in pairs])
        outcomes = [write_outcome(one, packer) for one in called]
        return outcomes, [array_bytes(record) for record in packer.records[len(blobs) :]]

    def measure(self, manifest: str, split: str, index: int, count: int, blob: bytes) -> dict[str, NDArray[np.float64]]:
        """The task's metrics on part `index` of `count` of a split, record by record; `blob`: the model's tensors."""
        read = Manifest.from_json(manifest)
        adapted = self._worker.adapted(read)
        adapted.load(read_tensors(read_arrays(blob), read.tensors))
        return dict(self._worker.values(adapted, split, shard=Shard(index, count)))

    @property
    def _worker(self) -> Worker:
        return worker_for(self._config)

    @cached_property
    def _clients(self) -> Clients:
        together = partial(answer_group, site=SimulatedSite()) if self._config.engine.together > 1 else None
        return Clients(app, together)

    def _find_ledgers(self) -> None:
        """Raises RunError unless the ledgers are those of the process that asks: with others, more would be spent."""
        if not self._mark:
            return
        mark = Path(self._mark)
        if not mark.is_file():
            raise RunError(
                f"{mark.parent} is not the folder that the run's privacy ledgers are in, as seen from host"
                f" {os.uname().nodename}: a client's ledger must be the same wherever it trains. Set privacy.ledgers to"
                " a folder that all nodes share, or use the actors of one node"
            )
        simulate_in(mark.parent)
