"""A whole run on virtual clients: make or reopen it in the store, drive its rounds, leave its results."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from flwr.serverapp import Grid

from fedlora.adapters.manifest import Tensors
from fedlora.client.app import LOCAL, app, restore_local
from fedlora.client.worker import Worker, worker_for
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import RunError
from fedlora.server.checkpoint import Checkpoint, commit, last_committed
from fedlora.server.events import (
    FILE,
    Emitter,
    Event,
    EventLog,
    Listener,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
)
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import RunHistory, RunInfo, RunStatus
from fedlora.server.rounds import Links, RoundLoop
from fedlora.server.store import RunStore
from fedlora.simulations.engines import ENGINES, Engine, around, engine_words, settle
from fedlora.simulations.results import leave_results
from fedlora.simulations.virtual import VirtualGrid
from fedlora.strategies.base import keeps_client_state


@dataclass(frozen=True)
class Watch:
    """How a caller follows and steers a run. listeners: called with each event. stop: True ends it after a round."""

    listeners: Sequence[Listener] = ()
    stop: Callable[[], bool] = lambda: False


def resolve(config: RunConfig) -> RunConfig:
    """`config` with what depends on this machine written out, so that a resumed run computes the same bits."""
    name = config.name or f"{config.strategy.name}-{config.data.name}"
    return settle(config).model_copy(update={"name": name})


def run(config: RunConfig, watch: Watch, *, sweep: str | None = None, grid: Grid | None = None) -> RunHistory:
    """Runs the experiment as a new run and returns its history.

    grid: an engine that is there already (Flower's); None: the configured one is made.

    Raises FedloraError; the run is then kept as failed, with the reason, and can be resumed.
    """
    config = resolve(config if grid is None else _driven_elsewhere(config))
    make_strategy(config.strategy)  # a wrong option must not leave an empty run behind
    store = RunStore.open(config.store)
    info = store.create(config, name=str(config.name), sweep=sweep)
    return _Run(store, info, config, watch, grid).drive()


def resume(store: RunStore, info: RunInfo, watch: Watch, *, rounds: int | None = None) -> RunHistory:
    """Goes on with a run after its last committed round, to `rounds` rounds in all if that is given.

    Raises FedloraError as `run` does.
    """
    info = store.reopen(info, rounds)
    return _Run(store, info, RunConfig.model_validate_json(info.config), watch, None).drive()


def _driven_elsewhere(config: RunConfig) -> RunConfig:
    """`config` for a grid whose clients are not in this process: what is left to do here needs no workers."""
    return config.model_copy(update={"engine": EngineConfig(name="sequential", workers=None)})


class _Run:
    """One run being driven by this process."""

    def __init__(self, store: RunStore, info: RunInfo, config: RunConfig, watch: Watch, grid: Grid | None) -> None:
        self.store, self.info, self.config, self.watch, self.grid = store, info, config, watch, grid
        self.began = time.perf_counter()

    def drive(self) -> RunHistory:
        """To the end, a stop or an error; the store knows which."""
        with self.store.lock(self.info), EventLog(self.info.folder / FILE) as log:
            emit = Emitter(log, self.watch.listeners)
            try:
                self._rounds_and_results(emit)
            except KeyboardInterrupt:
                self._stopped(emit, "interrupted in the middle of a round: that round will be run again")
                raise
            except Exception as error:
                self._failed(emit, error)
                raise
        return self.store.history(self.info)

    def _rounds_and_results(self, emit: Emitter) -> None:
        worker = worker_for(self.config)
        worker.check_partition()
        checkpoint = last_committed(self.store, self.info)
        emit(self._opening(checkpoint))
        method = make_strategy(self.config.strategy)
        state = method.start(worker.setup(method)) if checkpoint is None else checkpoint.state
        strategy = FlowerStrategy(method, state, self.config, self.info.id)
        with self._engine(worker) as engine:
            done = self._rounds(strategy, engine, emit, checkpoint)
            if done < self.config.federation.rounds:
                self._stopped(emit, f"stopped on request after round {done}")
                return
            test = engine.measure(strategy.state, "test", False)() if self.config.eval.test else {}
        summary = leave_results(self.store, self.info, self.config, worker, strategy.state, test)
        rounds = self.config.federation.rounds
        emit(RunFinished(run=self.info.id, round=done, rounds=rounds, summary=summary, seconds=self._seconds()))

    def _engine(self, worker: Worker) -> AbstractContextManager[Engine]:
        if self.grid is not None:
            return nullcontext(around(self.grid, worker))
        return ENGINES[self.config.engine.name](self.config, app, worker)

    def _rounds(self, strategy: FlowerStrategy, engine: Engine, emit: Emitter, checkpoint: Checkpoint | None) -> int:
        loop = RoundLoop(strategy, self.config, self._links(engine, emit))
        if checkpoint is None:
            loop.start()
        else:
            _restore(engine.grid, checkpoint, self.info.id)
        return loop.run(0 if checkpoint is None else checkpoint.round)

    def _opening(self, checkpoint: Checkpoint | None) -> Event:
        federation = self.config.federation
        facts: dict[str, Any] = {
            "run": self.info.id,
            "name": self.info.name,
            "strategy": self.info.strategy,
            "rounds": federation.rounds,
            "clients": federation.clients,
            "cohort": federation.cohort,
            "engine": engine_words(self.config) if self.grid is None else "Flower's grid",
            "folder": str(self.info.folder),
        }
        return RunStarted(**facts) if checkpoint is None else RunResumed(**facts, round=checkpoint.round)

    def _links(self, engine: Engine, emit: Emitter) -> Links:
        return Links(
            grid=engine.grid,
            ask=engine.ask,
            measure=lambda state, followed: engine.measure(state, "validation", followed),
            ahead=engine.ahead,
            commit=lambda checkpoint: commit(self.store, self.info, checkpoint),
            kept=lambda: _kept(engine.grid),
            emit=emit,
            stop=self.watch.stop,
        )

    def _stopped(self, emit: Emitter, reason: str) -> None:
        emit(RunStopped(**self._ending(), reason=reason))
        self.store.finish(self.info, RunStatus.STOPPED, reason=reason)

    def _failed(self, emit: Emitter, error: Exception) -> None:
        emit(RunFailed(**self._ending(), error=type(error).__name__, reason=str(error)))
        self.store.finish(self.info, RunStatus.FAILED, reason=f"{type(error).__name__}: {error}")

    def _ending(self) -> dict[str, Any]:
        last = self.store.last_round(self.info) or 0
        rounds = self.config.federation.rounds
        return {"run": self.info.id, "round": last, "rounds": rounds, "seconds": self._seconds()}

    def _seconds(self) -> float:
        return time.perf_counter() - self.began


def _kept(grid: Grid) -> Mapping[int, Tensors]:
    """What virtual clients keep of their own, for the checkpoint. Other engines' clients keep theirs themselves."""
    if not isinstance(grid, VirtualGrid):
        return {}
    return {
        client: {name: array.numpy() for name, array in record.items()}
        for client, record in grid.kept(LOCAL).items()
        if record
    }


def _restore(grid: Grid, checkpoint: Checkpoint, run_id: str) -> None:
    if checkpoint.round and keeps_client_state(checkpoint.state.manifest) and not checkpoint.clients:
        raise RunError(
            f"run {run_id} cannot be resumed: its clients keep tensors of their own, and the engine that ran it"
            " (Flower's) did not give them out for the checkpoint; start a new run"
        )
    if isinstance(grid, VirtualGrid):
        for client, tensors in checkpoint.clients.items():
            restore_local(grid.state_of(client), run_id, tensors)
