"""A whole run on virtual clients: make or reopen it in the store, drive its rounds, leave its results."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedlora.adapters.manifest import Tensors
from fedlora.client.app import app
from fedlora.client.kept import LOCAL, restore_local
from fedlora.client.worker import Worker, worker_for
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import RunError
from fedlora.privacy.account import promised, write_account
from fedlora.privacy.schedule import settle_privacy
from fedlora.server.checkpoint import Checkpoint, commit, last_committed, load
from fedlora.server.committing import Links
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
from fedlora.server.receipts import ReceiptBook
from fedlora.server.records import RoundRecord, RunHistory, RunInfo, RunStatus
from fedlora.server.rounds import RoundLoop
from fedlora.server.start import first_state
from fedlora.server.store import RunStore
from fedlora.simulations.engines import ENGINES, Engine, Linked, around, engine_words, over_link, settle
from fedlora.simulations.grouping import with_group
from fedlora.simulations.ledgers import close_ledgers, refuse_more_rounds, with_ledgers
from fedlora.simulations.results import leave_results
from fedlora.simulations.sites import common_to, keeps_ledgers, refuse
from fedlora.simulations.timed import in_virtual_time
from fedlora.simulations.virtual import VirtualGrid
from fedlora.strategies.base import State, Strategy, keeps_client_state
from fedlora.trackers.tracking import tracking


@dataclass(frozen=True)
class Watch:
    """How a caller follows and steers a run. listeners: called with each event. stop: True ends it after a round.

    key: the file of the key that signs receipts for clients' ledgers; None: the run has one of its own.
    """

    listeners: Sequence[Listener] = ()
    stop: Callable[[], bool] = lambda: False
    key: Path | None = None


def resolve(config: RunConfig) -> RunConfig:
    """`config` with what depends on this machine written out, so that a resumed run computes the same bits."""
    name = config.name or f"{config.strategy.name}-{config.data.name}"
    settled = config if config.federation.sites else settle(config)  # each site has its own machine
    return settle_privacy(settled).model_copy(update={"name": name})


def run(config: RunConfig, watch: Watch, *, sweep: str | None = None, grid: Grid | None = None) -> RunHistory:
    """Runs the experiment as a new run and returns its history.

    grid: an engine that is there already (Flower's, or a link to sites); None: the configured one is made.

    Raises ConfigError for local DP on a grid whose nodes keep no ledgers, or sites without a grid; and FedloraError:
    the run is then kept as failed, with the reason, and can be resumed.
    """
    refuse(config, grid)
    config = resolve(config if grid is None else _driven_elsewhere(config))
    make_strategy(config.strategy)  # a wrong option must not leave an empty run behind
    watch = _tracked(watch, config)
    store = RunStore.open(config.store)
    info = store.create(config, name=str(config.name), sweep=sweep)
    return _Run(store, info, config, watch, grid).drive()


def resume(
    store: RunStore, info: RunInfo, watch: Watch, *, rounds: int | None = None, grid: Grid | None = None
) -> RunHistory:
    """Goes on with a run after its last committed round, to `rounds` rounds in all if that is given.

    grid: as for `run`; a run of sites needs one.

    Raises FedloraError as `run` does; ConfigError for more rounds than a run under DP has announced and made its noise
    for.
    """
    config = RunConfig.model_validate_json(info.config)
    refuse(config, grid)
    if rounds not in (None, info.rounds):
        refuse_more_rounds(config)
    watch = _tracked(watch, config)
    info = store.reopen(info, rounds)
    return _Run(store, info, RunConfig.model_validate_json(info.config), watch, grid).drive()


def _tracked(watch: Watch, config: RunConfig) -> Watch:
    """With the trackers that the run asks for. Raises ConfigError for one that is not installed."""
    return replace(watch, listeners=(*watch.listeners, *tracking(config.track)))


def _driven_elsewhere(config: RunConfig) -> RunConfig:
    """`config` for a grid whose clients are not in this process: what is left to do here needs no workers."""
    return config.model_copy(update={"engine": EngineConfig(name="sequential", workers=None, address=None, group=1)})


def told(config: RunConfig) -> RunConfig:
    """`config` as clients are told it: in virtual time without a deadline, which for them is one of this machine's
    clock."""
    if not config.virtual.on:
        return config
    return config.model_copy(update={"federation": config.federation.model_copy(update={"timeout": None})})


class _Run:
    """One run being driven by this process."""

    def __init__(self, store: RunStore, info: RunInfo, config: RunConfig, watch: Watch, grid: Grid | None) -> None:
        self.store, self.info, self.watch, self.grid = store, info, watch, grid
        self.config = with_ledgers(config, info.folder)
        self.began = time.perf_counter()

    def drive(self) -> RunHistory:
        """To the end, a stop or an error; the store knows which."""
        with self.store.lock(self.info), EventLog(self.info.folder / FILE) as log:
            emit = Emitter(log, self.watch.listeners)
            write_account(self.info.folder, promised(self.config))
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
        worker = worker_for(told(self.config))
        if not self.config.federation.sites:
            worker.check_partition()
            self.config = with_group(self.config, worker)
        checkpoint = last_committed(self.store, self.info)
        emit(self._opening(checkpoint))
        method = make_strategy(self.config.strategy)
        book = ReceiptBook(self.info.folder, self.watch.key) if self.config.privacy.local else None
        with self._engine(worker) as engine:
            state, first = self._start(method, worker, engine, checkpoint, book)
            common = common_to(worker, fixed=bool(state.fixed))
            strategy = FlowerStrategy(method, state, told(self.config), self.info.id, book=book, **asdict(common))
            done = self._rounds(strategy, engine, emit, first, checkpoint)
            if done < self.config.federation.rounds:
                self._stopped(emit, f"stopped on request after round {done}")
                return
            test = engine.measure(strategy.state, "test", False)() if self.config.eval.test else {}
        close_ledgers(self.config, self.info.id)
        summary = leave_results(self.store, self.info, self.config, worker, strategy.state, test)
        rounds = self.config.federation.rounds
        emit(RunFinished(run=self.info.id, round=done, rounds=rounds, summary=summary, seconds=self._seconds()))

    def _engine(self, worker: Worker) -> AbstractContextManager[Engine]:
        if self.grid is not None:
            return nullcontext((over_link if isinstance(self.grid, Linked) else around)(self.grid, worker))
        return ENGINES[self.config.engine.name](told(self.config), app, worker)

    def _start(
        self,
        method: Strategy,
        worker: Worker,
        engine: Engine,
        checkpoint: Checkpoint | None,
        book: ReceiptBook | None,
    ) -> tuple[State, RoundRecord]:
        if checkpoint is not None:
            return checkpoint.state, checkpoint.record
        common = common_to(worker, fixed=False)
        setup = worker.setup(method)
        return first_state(
            method, setup, told(self.config), self.info.id, engine.ask, engine.grid, book=book, common=common
        )

    def _rounds(
        self,
        strategy: FlowerStrategy,
        engine: Engine,
        emit: Emitter,
        first: RoundRecord,
        checkpoint: Checkpoint | None,
    ) -> int:
        loop = RoundLoop(strategy, self.config, self._links(self._in_its_time(engine), engine.grid, emit, strategy))
        if checkpoint is None:
            loop.start(first)
        else:
            _restore(engine.grid, checkpoint, self.info.id)
            loop.resume(checkpoint, lambda number: load(self.info.folder, number).state)
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
            "engine": self._engine_words(),
            "folder": str(self.info.folder),
        }
        return RunStarted(**facts) if checkpoint is None else RunResumed(**facts, round=checkpoint.round)

    def _engine_words(self) -> str:
        if self.grid is None:
            return engine_words(self.config)
        return f"{self.config.federation.clients} sites" if self.config.federation.sites else "Flower's grid"

    def _in_its_time(self, engine: Engine) -> Engine:
        """The engine, in virtual time if the run has one."""
        if not self.config.virtual.on or not isinstance(engine.grid, VirtualGrid):
            return engine
        return in_virtual_time(engine, engine.grid, self.config)

    def _links(self, engine: Engine, clients: Grid, emit: Emitter, strategy: FlowerStrategy) -> Links:
        """clients: the Grid whose clients keep what is theirs."""

        def durable(checkpoint: Checkpoint) -> None:
            commit(self.store, self.info, checkpoint)
            strategy.acknowledge()
            engine.committed(checkpoint.round)

        return Links(
            grid=engine.grid,
            ask=engine.ask,
            measure=lambda state, followed: engine.measure(state, "validation", followed),
            ahead=engine.ahead,
            commit=durable,
            kept=lambda: _kept(clients),
            emit=emit,
            emit_many=emit.many,
            stop=self.watch.stop,
            desk=engine.desk,
            clock=engine.clock,
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
    if keeps_ledgers(grid):  # owners keep what is theirs themselves
        return
    if checkpoint.round and keeps_client_state(checkpoint.state.manifest) and not checkpoint.clients:
        raise RunError(
            f"run {run_id} cannot be resumed: its clients keep tensors of their own, and the engine that ran it"
            " (Flower's) did not give them out for the checkpoint; start a new run"
        )
    if isinstance(grid, VirtualGrid):
        for client, tensors in checkpoint.clients.items():
            restore_local(grid.state_of(client), run_id, tensors)
