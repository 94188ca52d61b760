"""Worker processes for virtual clients: forked, so that all share one base model and one copy of the data."""

import copyreg
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor
from multiprocessing import active_children, get_all_start_methods, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from numpy.typing import NDArray

from fedlora.adapters.manifest import Manifest, Tensors
from fedlora.client.worker import Worker
from fedlora.errors import RunError
from fedlora.flower_internals import arrays_in, encoded
from fedlora.simulations.placement import Placement
from fedlora.simulations.virtual import WORKER_DIED, Called, Clients, Group
from fedlora.strategies.base import State, global_tensors
from fedlora.training.evaluate import Shard, means
from fedlora.wire_tensors import flat_in, to_record

P = ParamSpec("P")
R = TypeVar("R")
Values = Mapping[str, NDArray[np.float64]]
Timed = tuple[Sequence[Called], float]
"""A group's outcomes, and the seconds that they took."""


def can_fork() -> bool:
    """Whether this system starts processes by fork, so that they share what is loaded."""
    return "fork" in get_all_start_methods()


class WorkerPool:
    """A `Caller` with `workers` processes of one thread each. They are forked from this one at the first call.

    clients: what a call runs. worker: this process's, with everything loaded that the children are to share. A child
    that dies costs the calls that were under way; the next call starts a new set.
    """

    def __init__(self, clients: Clients, worker: Worker, workers: int) -> None:
        self._clients, self._worker, self.workers = clients, worker, workers
        self._pool: ProcessPoolExecutor | None = None
        self._placement = Placement(workers)
        self._children: set[BaseProcess] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the children: at once if this is the end by an error or an interrupt, else when they are idle."""
        if error is not None:
            for child in self._children:
                child.kill()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def call(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Future[Sequence[Called]]:
        """See `Caller`. The future raises BrokenExecutor if the worker process died."""
        return self._submit(_call, messages, contexts)

    def call_all(self, groups: Sequence[Group]) -> Sequence[Future[Sequence[Called]]]:
        """See `Sharing`. A worker that dies costs all groups of its shard (`placement.SHARD` at most)."""
        futures: dict[int, Future[Sequence[Called]]] = {}
        for places in self._placement.calls([_clients_of(group) for group in groups]):
            shard = self._submit(_call_shard, [groups[place] for place in places])
            futures.update(zip(places, self._each(shard, [groups[place] for place in places]), strict=True))
        return [futures[place] for place in range(len(groups))]

    def _each(self, shard: Future[Sequence[Timed]], groups: Sequence[Group]) -> list[Future[Sequence[Called]]]:
        """A future for each group of a shard. Cancelling one has no effect: the shard goes on."""
        parts: list[Future[Sequence[Called]]] = [Future() for _ in groups]

        def done(whole: Future[Sequence[Timed]]) -> None:
            error = CancelledError() if whole.cancelled() else whole.exception()
            for place, part in enumerate(parts):
                if error is None:
                    called, seconds = whole.result()[place]
                    self._placement.learn(_clients_of(groups[place]), seconds)
                    part.set_result(called)
                else:
                    part.set_exception(error)

        shard.add_done_callback(done)
        return parts

    def measure(self, state: State, split: str, parts: int) -> Callable[[], Mapping[str, float]]:
        """Begins to measure `state` on `split`, in `parts` calls.

        What it returns, called, gives the metrics, named `<split>_<metric>`: the same bits as in one process, whatever
        `parts` is. It raises RunError if a worker process died.
        """
        tensors = global_tensors(state)
        shards = [Shard(index, parts) for index in range(parts)]
        futures = [self._submit(_measure, state.manifest, tensors, split, shard) for shard in shards]
        return lambda: {f"{split}_{name}": value for name, value in _gathered(futures).items()}

    def _submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        if self._pool is None:
            self._pool = self._start()
        try:
            return self._pool.submit(function, *args, **kwargs)
        except BrokenExecutor:
            self._pool = self._start()
            return self._pool.submit(function, *args, **kwargs)

    def _start(self) -> ProcessPoolExecutor:
        self._worker.load_all()
        others = set(active_children())
        pool = ProcessPoolExecutor(
            self.workers, get_context("fork"), initializer=_begin, initargs=(self._clients, self._worker)
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads. Ours (a progress bar's) hold no lock that a child takes,
            # and a child computes with one thread, as OpenMP's threads do not survive a fork.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            pool.submit(os.getpid)
        self._children = set(active_children()) - others
        return pool


def _clients_of(group: Group) -> list[int]:
    return [context.node_id for context in group[1]]


def _gathered(futures: Sequence[Future[Values]]) -> Mapping[str, float]:
    try:
        return means([future.result() for future in futures])
    except BrokenExecutor as error:
        raise RunError(WORKER_DIED) from error


_clients: Clients
_worker: Worker


def _begin(clients: Clients, worker: Worker) -> None:
    """Makes a fresh child of this process a worker."""
    global _clients, _worker
    _clients, _worker = clients, worker
    copyreg.pickle(ArrayRecord, _as_tuples)  # between these processes alone
    gc.freeze()  # objects of the parent (its database, say) are not to be collected and closed here
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork either
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _as_tuples(record: ArrayRecord) -> tuple[Callable[..., ArrayRecord], tuple[Any, ...]]:
    """How a worker's answers go to its parent: an object for each array would take eight times as long."""
    flat = flat_in(record)
    if flat is not None:
        return to_record, (flat,)
    return _from_tuples, ([(name, each.dtype, each.shape, each.stype, each.data) for name, each in record.items()],)


def _from_tuples(arrays: Sequence[tuple[str, str, tuple[int, ...], str, bytes]]) -> ArrayRecord:
    return arrays_in({name: encoded(dtype, shape, data, stype) for name, dtype, shape, stype, data in arrays})


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)


def _call_shard(groups: Sequence[Group]) -> Sequence[Timed]:
    return [_timed(messages, contexts) for messages, contexts in groups]


def _timed(messages: Sequence[Message], contexts: Sequence[Context]) -> Timed:
    began = time.perf_counter()
    return _clients.answer(messages, contexts), time.perf_counter() - began


def _call(messages: Sequence[Message], contexts: Sequence[Context]) -> Sequence[Called]:
    return _clients.answer(messages, contexts)


def _measure(manifest: Manifest, tensors: Tensors, split: str, shard: Shard) -> Values:
    adapted = _worker.adapted(manifest)
    adapted.load(tensors)
    return _worker.values(adapted, split, shard=shard)
