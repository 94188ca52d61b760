"""The engines by name: each carries tasks to virtual clients, and measures the global model."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlora.client.group import answer_group
from fedlora.client.site import SimulatedSite
from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.server.clock import Clock, WallClock
from fedlora.server.committing import Desk
from fedlora.simulations.measure import measure_state
from fedlora.simulations.processes import WorkerPool, can_fork
from fedlora.simulations.ray_link import require_ray
from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid, groups_of
from fedlora.strategies.base import State
from fedlora.training.matmul import matmul_precision
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
    the background. committed: told the number of each round that is durable. desk: see `Desk`. clock: what rounds,
    deadlines and pauses take for the time.
    """

    grid: Grid
    ask: Callable[[Iterable[Message], float | None], Callable[[], Iterable[Message]]]
    measure: Callable[[State, str, bool], Callable[[], Mapping[str, float]]]
    ahead: bool
    committed: Callable[[int], None] = untold
    desk: Desk = field(default_factory=Desk)
    clock: Clock = field(default_factory=WallClock)


MakeEngine = Callable[[RunConfig, ClientApp, Worker], AbstractContextManager[Engine]]


@contextmanager
def sequential(config: RunConfig, app: ClientApp, worker: Worker) -> Iterator[Engine]:
    """One virtual client after another in this process. The reference for all other engines."""
    grid = VirtualGrid(
        InProcess(_clients(config, app)), config.federation.clients, split=groups_of(config.engine.together, 1)
    )
    yield around(grid, worker)


@contextmanager
def processes(config: RunConfig, app: ClientApp, worker: Worker) -> Iterator[Engine]:
    """Several virtual clients at once, in forked workers. What `worker` has loaded, they share."""
    with WorkerPool(_clients(config, app), worker, config.engine.workers or 1) as pool:
        grid = VirtualGrid(pool, config.federation.clients, split=groups_of(config.engine.together, pool.workers))
        yield Engine(grid, grid.ask, partial(_measure_in, pool, config.federation.cohort), ahead=True)


def _clients(config: RunConfig, app: ClientApp) -> Clients:
    together = partial(answer_group, site=SimulatedSite()) if config.engine.together > 1 else None
    return Clients(app, together)


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

    def withdraw(self, message_ids: Iterable[str], reason: str) -> None:
        """See `Desk`."""
        ...

    def present(self) -> Collection[int]:
        """See `Desk`."""
        ...

    def tidy(self) -> None:
        """See `Desk`."""
        ...


def over_link(grid: Any, worker: Worker) -> Engine:
    """An engine from a link to sites (a Grid that is `Linked`): they train while this process measures."""
    link: Linked = grid

    def measure(state: State, split: str, followed: bool) -> Callable[[], Mapping[str, float]]:
        del followed
        return lambda: measure_state(worker, state, split)

    desk = Desk(link.withdraw, link.present, link.tidy)
    return Engine(grid, link.ask, measure, ahead=True, committed=link.committed, desk=desk)


def _measure_in(
    pool: WorkerPool, cohort: int, state: State, split: str, followed: bool
) -> Callable[[], Mapping[str, float]]:
    """In as many parts as there are workers; if training follows, in as many as its last clients leave idle."""
    idle = pool.workers - cohort % pool.workers
    return pool.measure(state, split, idle if followed else pool.workers)


def _on_ray(config: RunConfig, app: ClientApp, worker: Worker) -> AbstractContextManager[Engine]:
    """See `ray_engine`, which is imported only for a run that asks for it."""
    from fedlora.simulations.ray_actors import ray_engine

    return ray_engine(config, app, worker)


ENGINES: Mapping[str, MakeEngine] = {"sequential": sequential, "processes": processes, "ray": _on_ray}
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
    _refuse_groups(config)
    cores = torch.get_num_threads()
    config = _with_open_group(config)
    if config.engine.name == "ray":
        require_ray()
        return _with(config, "ray", _actors(config, cores), config.train.threads or 1)
    workers = config.engine.workers or min(cores, config.federation.cohort)
    if config.engine.name == "processes" or (config.engine.name == "auto" and workers > 1 and _fit_to_fork(config)):
        return _on_this_machine(_with(config, "processes", workers, 1))
    return _on_this_machine(_with(config, "sequential", None, config.train.threads or cores))


def _on_this_machine(config: RunConfig) -> RunConfig:
    """With the precision of products that `auto` is here; an actor or a site elsewhere chooses its own."""
    chosen = matmul_precision(config.train, resolve_device(config.train))
    return config.model_copy(update={"train": config.train.model_copy(update={"matmul": chosen})})


def _with_open_group(config: RunConfig) -> RunConfig:
    """An open `engine.group` stays so, for the data to decide, where groups are possible."""
    if config.engine.group is not None or not _against_groups(config):
        return config
    return config.model_copy(update={"engine": config.engine.model_copy(update={"group": 1})})


def engine_words(config: RunConfig) -> str:
    """A settled engine in a few words."""
    group = config.engine.together
    together = f", {group} clients in a pass" if group > 1 else ""
    if config.engine.name == "processes":
        return f"{config.engine.workers} worker processes{together}"
    if config.engine.name == "ray":
        return f"{config.engine.workers or 'as many'} Ray actors{'' if config.engine.workers else ' as fit'}{together}"
    threads = config.train.threads
    return ("1 thread" if threads == 1 else f"{threads} threads") + together


def _actors(config: RunConfig, cores: int) -> int | None:
    """How many Ray actors there are to be; None: as many as the cluster at `engine.address` has places for."""
    if config.engine.workers or config.engine.address is not None:
        return config.engine.workers
    gpus = torch.cuda.device_count() if resolve_device(config.train).type == "cuda" else 0
    return min(gpus or max(1, cores // (config.train.threads or 1)), config.federation.cohort)


def _fit_to_fork(config: RunConfig) -> bool:
    return can_fork() and resolve_device(config.train).type == "cpu" and config.train.threads in (None, 1)


def _refuse_groups(config: RunConfig) -> None:
    """Raises RunError for a group of clients that would not train as each of them alone."""
    group, found = config.engine.together, _against_groups(config)
    if group > 1 and found:
        raise RunError(
            f"engine.group={group} cannot be used with {', '.join(found)}: each client draws its own"
            " masks, which one pass for several does not; set engine.group=1"
        )


def _against_groups(config: RunConfig) -> list[str]:
    """The settings with which clients in a group would not train as alone."""
    reasons = {"adapter.dropout": config.adapter.dropout > 0, "model.dropout": config.model.dropout}
    return [name for name, there in reasons.items() if there]


def _with(config: RunConfig, name: str, workers: int | None, threads: int) -> RunConfig:
    engine = config.engine.model_copy(update={"name": name, "workers": workers})
    train = config.train.model_copy(update={"threads": threads})
    return config.model_copy(update={"engine": engine, "train": train})
