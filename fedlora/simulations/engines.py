"""The engines by name: each carries tasks to virtual clients, and measures the global model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlora.client.worker import Worker
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.errors import RunError
from fedlora.simulations.measure import measure_state
from fedlora.simulations.processes import WorkerPool, can_fork
from fedlora.simulations.virtual import InProcess, VirtualGrid
from fedlora.strategies.base import State
from fedlora.training.settings import resolve_device


def untold(number: int) -> None:
    """For an engine that need not know which rounds are durable."""
    del number


@dataclass(frozen=True)
class Engine:
    """What a run needs of an engine.

    ask: begins to have messages answered, within a number of seconds; what it returns, called, gives the replies.
    measure: begins to measure a state's global model on a split ("validation" or "test"), told whether training
    follows at once; what it returns, called, gives the metrics, named `<split>_<metric>`. ahead: whether it does so in
    the background. committed: told the number of each round that is durable.
    """

    grid: Grid
    ask: Callable[[Iterable[Message], float | None], Callable[[], Iterable[Message]]]
    measure: Callable[[State, str, bool], Callable[[], Mapping[str, float]]]
    ahead: bool
    committed: Callable[[int], None] = untold


MakeEngine = Callable[[RunConfig, ClientApp, Worker], AbstractContextManager[Engine]]


@contextmanager
def sequential(config: RunConfig, app: ClientApp, worker: Worker) -> Iterator[Engine]:
    """One virtual client after another in this process. The reference for all other engines."""
    yield around(VirtualGrid(InProcess(app), config.federation.clients), worker)


@contextmanager
def processes(config: RunConfig, app: ClientApp, worker: Worker) -> Iterator[Engine]:
    """Several virtual clients at once, in forked workers. What `worker` has loaded, they share."""
    with WorkerPool(app, worker, config.engine.workers or 1) as pool:
        grid = VirtualGrid(pool, config.federation.clients)
        yield Engine(grid, grid.ask, partial(_measure_in, pool, config.federation.cohort), ahead=True)


def around(grid: Grid, worker: Worker) -> Engine:
    """An engine from any Grid: the global model is measured in this process, before anything else is begun."""

    def measure(state: State, split: str, followed: bool) -> Callable[[], Mapping[str, float]]:
        del followed
        metrics = measure_state(worker, state, split)
        return lambda: metrics

    def ask(messages: Iterable[Message], timeout: float | None) -> Callable[[], Iterable[Message]]:
        return lambda: grid.send_and_receive(messages, timeout=timeout)

    return Engine(grid, ask, measure, ahead=False)


@runtime_checkable
class Linked(Protocol):
    """What a link to sites has beside a Grid's methods."""

    def ask(self, messages: Iterable[Message], timeout: float | None) -> Callable[[], Iterable[Message]]:
        """See `Engine`."""
        ...

    def committed(self, number: int) -> None:
        """See `Engine`."""
        ...


def over_link(grid: Any, worker: Worker) -> Engine:
    """An engine from a link to sites (a Grid that is `Linked`): they train while this process measures."""
    link: Linked = grid

    def measure(state: State, split: str, followed: bool) -> Callable[[], Mapping[str, float]]:
        del followed
        return lambda: measure_state(worker, state, split)

    return Engine(grid, link.ask, measure, ahead=True, committed=link.committed)


def _measure_in(
    pool: WorkerPool, cohort: int, state: State, split: str, followed: bool
) -> Callable[[], Mapping[str, float]]:
    """In as many parts as there are workers; if training follows, in as many as its last clients leave idle."""
    idle = pool.workers - cohort % pool.workers
    return pool.measure(state, split, idle if followed else pool.workers)


ENGINES: Mapping[str, MakeEngine] = {"sequential": sequential, "processes": processes}
"""`engine.name` → its maker."""


def settle(config: RunConfig) -> RunConfig:
    """`config` with engine, workers and threads chosen for this machine, so that a resumed run computes the same bits.

    Raises RunError for a device or an engine that this machine does not have.
    """
    if config.engine.name == "processes" and not _fit_to_fork(config):
        raise RunError(
            "engine=processes cannot work here: it forks workers that share a model on the CPU, and this system"
            " starts no process by fork, or the device is CUDA; set engine=sequential"
        )
    cores = torch.get_num_threads()
    workers = config.engine.workers or min(cores, config.federation.cohort)
    if config.engine.name == "processes" or (config.engine.name == "auto" and workers > 1 and _fit_to_fork(config)):
        return _with(config, EngineConfig(name="processes", workers=workers), 1)
    return _with(config, EngineConfig(name="sequential", workers=None), config.train.threads or cores)


def engine_words(config: RunConfig) -> str:
    """A settled engine in a few words."""
    if config.engine.name == "processes":
        return f"{config.engine.workers} worker processes"
    threads = config.train.threads
    return "1 thread" if threads == 1 else f"{threads} threads"


def _fit_to_fork(config: RunConfig) -> bool:
    return can_fork() and resolve_device(config.train).type == "cpu" and config.train.threads in (None, 1)


def _with(config: RunConfig, engine: EngineConfig, threads: int) -> RunConfig:
    train = config.train.model_copy(update={"threads": threads})
    return config.model_copy(update={"engine": engine, "train": train})
