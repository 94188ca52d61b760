"""The Ray engine: one long-lived actor for each device, on this machine or on a cluster's.

A group of messages goes to whichever actor is free; an actor that dies is replaced, and its group is asked of another.
Ray is one trust domain: whoever reaches it can have anything done. It is for simulations, never for sites.
"""

import logging
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedlora.client import app as client_app
from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.simulations.engines import Engine
from fedlora.simulations.parcels import Letter, Packer, array_bytes, read_arrays, read_outcome, write_letter
from fedlora.simulations.ray_link import connected
from fedlora.simulations.ray_resident import Resident
from fedlora.simulations.virtual import WORKER_DIED, Called, VirtualGrid, groups_of
from fedlora.strategies.base import State, global_tensors
from fedlora.training.evaluate import means
from fedlora.training.settings import resolve_device
from fedlora.wire import to_record
from fedlora.wire_work import travelling

log = logging.getLogger(__name__)

MOST_DEATHS = 3
"""Actors that may die over one group, or one after another at one place, before it is given up."""

SHARED = 16
"""Array records, the last used ones, that stay in Ray's store for the next messages."""

SILENCE = 60.0
"""Seconds after which the log says that an actor has not begun."""


@contextmanager
def ray_engine(config: RunConfig, app: ClientApp, worker: Worker) -> Iterator[Engine]:
    """Virtual clients on Ray: a `MakeEngine`. The actors load model and data themselves, `worker` is not theirs.

    Raises RunError if Ray is missing or cannot be reached, has no place for an actor, or an actor cannot load.
    """
    del worker
    if app is not client_app.app:
        raise RunError(
            "engine=ray runs fedlora's own client app: an app of this process cannot be sent to Ray's actors"
        )
    with connected(config, gpus_here(config)) as ray, _marked(config) as mark:
        arguments = (travelling(config).model_dump_json(), str(Path.cwd()), mark)
        actors, options = places(config, ray.cluster_resources())
        start = partial(ray.remote(Resident).options(**options).remote, *arguments)
        with ActorPool(ray, start, actors) as pool:
            grid = VirtualGrid(pool, config.federation.clients, split=groups_of(config.engine.together, actors))
            yield Engine(grid, grid.ask, partial(_measure_in, pool, config.federation.cohort), ahead=True)


def _measure_in(
    pool: "ActorPool", cohort: int, state: State, split: str, followed: bool
) -> Callable[[], Mapping[str, float]]:
    """In as many parts as there are actors; if training follows, in as many as its last clients leave idle."""
    idle = pool.actors - cohort % pool.actors
    return pool.measure(state, split, idle if followed else pool.actors)


def gpus_here(config: RunConfig) -> int:
    """The GPUs of this machine that `config` may use; 0 if they are a cluster's."""
    here = config.engine.address is None and resolve_device(config.train).type == "cuda"
    return torch.cuda.device_count() if here else 0


def places(config: RunConfig, resources: Mapping[str, float]) -> tuple[int, dict[str, Any]]:
    """How many actors there are to be, and what of Ray's `resources` each one needs: a GPU, or the CPUs of its threads.

    Raises RunError if there is no place for any.
    """
    threads = config.train.threads or 1
    gpus = 0 if config.train.device == "cpu" else math.floor(resources.get("GPU", 0))
    if config.train.device == "cuda" and not gpus:
        raise RunError("train.device=cuda, but Ray knows of no GPU: start it with some, or set train.device=cpu")
    there = gpus or math.floor(resources.get("CPU", 0)) // threads
    if not there:
        raise RunError(f"Ray has no place for an actor: each needs {threads} CPUs (train.threads), Ray has {resources}")
    options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_gpus": 0, "num_cpus": threads}
    return config.engine.workers or min(there, config.federation.cohort), {**options, "max_restarts": 0}


@contextmanager
def _marked(config: RunConfig) -> Iterator[str]:
    """The path of a file beside the ledgers, by which an actor knows that it sees them; "" if there are none."""
    folder = config.privacy.ledgers
    if not config.privacy.local or folder is None:
        yield ""
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = folder / f".seen-{secrets.token_hex(8)}"
    mark.touch(mode=0o600)
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)


class ActorPool:
    """A `Caller` with `actors` Ray actors. start: makes one.

    They load at once, side by side. Leaving the block ends them: at once after an error, else when they are idle.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], actors: int) -> None:
        self._ray, self._start, self.actors = ray, start, actors
        self._calls = ThreadPoolExecutor(actors, "ray-call")  # each serves one actor at a time
        self._starts = ThreadPoolExecutor(actors, "ray-start")
        self._free: SimpleQueue[Any] = SimpleQueue()  # actors, and None once there is a `_problem`
        self._lock = threading.Lock()
        self._alive: list[Any] = []
        self._places, self._closed = actors, False
        self._problem = RunError("Ray's actors are gone: the engine was left")
        self._shared: OrderedDict[int, tuple[ArrayRecord, Any]] = OrderedDict()

    def __enter__(self) -> Self:
        for _ in range(self.actors):
            self._starts.submit(self._occupy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True  # no actor is made from now on
        self._free.put(None)  # whoever waits for one need not
        if error is None:
            self._calls.shutdown(cancel_futures=True)
        for actor in self._alive:
            self._ray.kill(actor)
        self._calls.shutdown(cancel_futures=True)
        self._starts.shutdown(cancel_futures=True)

    def call(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Future[Sequence[Called]]:
        """See `Caller`. The future raises BrokenExecutor if `MOST_DEATHS` actors died over the group."""
        packer = Packer()
        letters = [write_letter(message, context, packer) for message, context in zip(messages, contexts, strict=True)]
        references = [self._reference(record) for record in packer.records]
        return self._calls.submit(self._answer, messages, letters, packer.records, references)

    def measure(self, state: State, split: str, parts: int) -> Callable[[], Mapping[str, float]]:
        """As `WorkerPool.measure`."""
        manifest = state.manifest.to_json()
        tensors = self._ray.put(array_bytes(to_record(global_tensors(state))))

        def measured(part: int) -> Mapping[str, Any]:
            values: Mapping[str, Any] = self._asked(
                lambda actor: actor.measure.remote(manifest, split, part, parts, tensors)
            )
            return values

        futures = [self._calls.submit(measured, part) for part in range(parts)]
        return lambda: {f"{split}_{name}": value for name, value in _gathered(futures).items()}

    def _answer(
        self,
        messages: Sequence[Message],
        letters: Sequence[Letter],
        records: Sequence[ArrayRecord],
        references: Sequence[Any],
    ) -> Sequence[Called]:
        outcomes, blobs = self._asked(lambda actor: actor.answer.remote(letters, *references))
        numbered = [*records, *map(read_arrays, blobs)]
        return [read_outcome(message, found, numbered) for message, found in zip(messages, outcomes, strict=True)]

    def _reference(self, record: ArrayRecord) -> Any:
        """`record` in Ray's store, where it is put once for all messages that share it."""
        if id(record) not in self._shared:
            self._shared[id(record)] = (record, self._ray.put(array_bytes(record)))
        self._shared.move_to_end(id(record))
        while len(self._shared) > SHARED:
            self._shared.popitem(last=False)
        return self._shared[next(reversed(self._shared))][1]

    def _asked(self, ask: Callable[[Any], Any]) -> Any:
        """What an actor answers: the first that is free, or another if that one dies."""
        for _ in range(MOST_DEATHS):
            actor = self._take()
            try:
                answer = self._ray.get(ask(actor))
            except self._deaths as error:
                self._replace(actor, error)
            except self._ray.exceptions.RayError as error:
                self._free.put(actor)
                raise RunError(f"a Ray actor could not do what it was asked: {error}") from error
            else:
                self._free.put(actor)
                return answer
        raise BrokenExecutor(WORKER_DIED)

    @property
    def _deaths(self) -> tuple[type[Exception], ...]:
        """What Ray raises when an actor, or the node that it was on, is gone."""
        known = self._ray.exceptions
        return (known.RayActorError, known.OutOfMemoryError, known.ObjectLostError, known.NodeDiedError)

    def _take(self) -> Any:
        actor = self._free.get()
        if actor is None:
            self._free.put(None)  # for the next that waits
            raise self._problem
        return actor

    def _replace(self, actor: Any, error: Exception) -> None:
        with self._lock:
            if self._closed:
                raise self._problem from error
            log.warning("a Ray actor died over a call: %s", _first_line(error))
            self._alive.remove(actor)
            self._starts.submit(self._occupy)
        self._ray.kill(actor)  # it may be one that only cannot be reached

    def _occupy(self) -> None:
        """Starts an actor, and again if it dies while it loads."""
        problem = ""
        for _ in range(MOST_DEATHS):
            try:
                if problem := self._loaded():
                    self._give_up(f"a Ray actor cannot load what the run needs: {problem}")
                return
            except Exception as error:  # noqa: BLE001 - nobody waits for this thread: who waits for an actor is told
                problem = _first_line(error)
            if self._closed:
                return
            log.warning("a Ray actor ended before it had loaded: %s", problem)
        self._lose_place(problem)

    def _lose_place(self, problem: str) -> None:
        with self._lock:
            self._places -= 1
        if not self._places:
            self._give_up(f"no Ray actor could be started: {problem}")

    def _loaded(self) -> str:
        """Makes an actor and offers it once it has loaded; or says why it cannot load."""
        with self._lock:
            if self._closed:
                return ""
            actor = self._start()
            self._alive.append(actor)
        loading = actor.load.remote()
        while not self._ray.wait([loading], timeout=SILENCE)[0]:
            log.warning("a Ray actor has not begun after %.0f s: has Ray a place for it, and is it loading?", SILENCE)
        problem: str = self._ray.get(loading)
        if not problem:
            self._free.put(actor)
        return problem

    def _give_up(self, reason: str) -> None:
        self._problem = RunError(reason)
        self._free.put(None)


def _gathered(futures: Sequence[Future[Mapping[str, Any]]]) -> Mapping[str, float]:
    try:
        return means([future.result() for future in futures])
    except BrokenExecutor as error:
        raise RunError(WORKER_DIED) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
