"""What the pool of Ray actors does when they die, cannot load or are late: on a Ray that is objects of this process."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedlora.client.app import app
from fedlora.client.worker import worker_for
from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import RunError
from fedlora.server.records import Outcome
from fedlora.simulations import ray_actors, ray_link
from fedlora.simulations.engines import ENGINES, Engine, settle
from fedlora.simulations.measure import measure_state
from fedlora.simulations.ray_actors import ActorPool
from fedlora.simulations.simulate import Watch, run
from tests.simulations.test_ray import assert_same, entries
from tests.simulations.test_ray import make as make

Make = Callable[..., RunConfig]
PLAIN = (str, int, float, bool, bytes, type(None), np.ndarray)


class DiedError(Exception):
    """An actor is gone."""


class FailedError(Exception):
    """An actor's method raised."""


class Actor:
    """Does what it is asked in this process, one call at a time; `fate(method)` decides what becomes of a call."""

    turn = threading.RLock()

    def __init__(self, resident: Any, fate: Callable[[str], str]) -> None:
        self.resident, self.fate, self.dead = resident, fate, False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._call(method, arguments))

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        assert_plain(arguments)
        fate = self.fate(method)
        if fate == "dies":
            return DiedError("it was killed")
        if fate == "hangs":
            return self
        if method == "load":  # the process's worker is loaded already
            return fate
        with self.turn:
            found = getattr(self.resident, method)(*arguments)
        assert_plain(found)
        return DiedError("its answer was lost") if fate == "lost" else found


class Ray:
    """The few things that the engine asks of Ray."""

    exceptions = SimpleNamespace(
        RayError=(DiedError, FailedError),
        RayActorError=DiedError,
        OutOfMemoryError=DiedError,
        ObjectLostError=DiedError,
        NodeDiedError=DiedError,
    )

    def __init__(self, fate: Callable[[str], str]) -> None:
        self.fate = fate
        self.actors: list[Actor] = []

    def remote(self, resident: type) -> Any:
        def start(*arguments: Any) -> Actor:
            assert_plain(arguments)
            self.actors.append(Actor(resident(*arguments), self.fate))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def cluster_resources(self) -> Mapping[str, float]:
        return {"CPU": 2.0}

    def put(self, value: bytes) -> bytes:
        assert_plain(value)
        return value

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        (reference,) = references
        if isinstance(reference, Actor) and not reference.dead:
            time.sleep(0.01)
            return [], references
        return references, []

    def get(self, reference: Any) -> Any:
        while isinstance(reference, Actor):  # it hangs
            if reference.dead:
                raise DiedError("it was killed")
            time.sleep(0.01)
        if isinstance(reference, Exception):
            raise reference
        return reference

    def kill(self, actor: Actor) -> None:
        actor.dead = True


def assert_plain(found: Any) -> None:
    """No class of fedlora or Flower crosses to an actor or back."""
    if isinstance(found, dict | list | tuple):
        assert type(found) in (dict, list, tuple)
        for value in found.values() if isinstance(found, dict) else found:
            assert_plain(value)
    else:
        assert isinstance(found, PLAIN), type(found)


Install = Callable[..., Ray]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a Ray in place whose actors meet, one call of a method after another, the fates that are given for it."""

    def install(**fates: list[str]) -> Ray:
        fake = Ray(lambda method: fates[method].pop(0) if fates.get(method) else "")

        @contextmanager
        def connected(config: RunConfig, gpus: int) -> Iterator[Ray]:
            yield fake

        monkeypatch.setattr(ray_actors, "connected", connected)
        monkeypatch.setattr(ray_link, "find_spec", lambda name: name)
        return fake

    return install


@contextmanager
def engine_of(config: RunConfig) -> Iterator[Engine]:
    settled = settle(config)
    with ENGINES["ray"](settled, app, worker_for(settled)) as engine:
        yield engine


def test_an_answer_that_was_lost_is_not_noised_again(make: Make, installed: Install) -> None:
    fake = installed(answer=["lost"])
    privacy = {"name": "dp", "epsilon": 8.0, "rate": 0.3}
    history = run(make("together", privacy=privacy, **{"federation.rounds": 1}), Watch())
    assert [row.outcome for row in history.rounds[1].roster] == [Outcome.REPORTED] * 3
    assert len(fake.actors) == 3
    found = entries(history)
    assert len(found) == 3
    assert all(kinds.count("released") == kinds.count("begun") == 1 and "void" not in kinds for kinds in found)
    assert {path.name[:7] for path in (history.run.folder / "ledgers").iterdir()} == {"client-"}


def test_a_group_over_which_every_actor_dies_fails_and_the_run_goes_on(make: Make, installed: Install) -> None:
    installed(answer=["dies"] * ray_actors.MOST_DEATHS)
    config = make("together", engine={"name": "ray", "workers": 1}, **{"federation.rounds": 1})
    roster = run(config, Watch()).rounds[1].roster
    assert [row.outcome for row in roster] == [Outcome.FAILED, Outcome.REPORTED, Outcome.REPORTED]
    assert "a worker process ended before it answered" in roster[0].reason


def test_one_death_fewer_costs_nothing(make: Make, installed: Install) -> None:
    alone = run(make("alone", strategy={"name": "fed_sb"}), Watch())
    installed(answer=["dies"] * (ray_actors.MOST_DEATHS - 1), load=["", "", "dies"], measure=["lost"])
    assert_same(run(make("together", strategy={"name": "fed_sb"}), Watch()), alone)


def test_a_group_of_clients_is_one_call(make: Make, installed: Install) -> None:
    calls: list[str] = []
    fake = installed()
    fake.fate = lambda method: calls.append(method) or ""  # type: ignore[func-returns-value]
    engine = {"name": "ray", "workers": 1, "group": 3}
    history = run(make("together", engine=engine, **{"federation.rounds": 1}), Watch())
    assert [row.outcome for row in history.rounds[1].roster] == [Outcome.REPORTED] * 3
    assert calls.count("answer") == 1


def test_a_client_that_fails_says_why(make: Make, installed: Install) -> None:
    installed()
    config = make("together", **{"train.lr": 1e30, "federation.rounds": 1, "federation.min_reports": 1})
    with pytest.raises(RunError, match="loss"):
        run(config, Watch())


@pytest.mark.parametrize("parts", [1, 3])
def test_the_model_is_measured_with_the_same_bits(make: Make, installed: Install, parts: int) -> None:
    fake = installed()
    config = settle(make("together", **{"eval.batch": 4}))
    worker, method = worker_for(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    arguments = (config.model_dump_json(), str(Path.cwd()), "")
    start = fake.remote(ray_actors.Resident).options().remote
    with ActorPool(fake, lambda: start(*arguments), 2) as pool:
        found = pool.measure(state, "validation", parts)()
    assert found == measure_state(worker, state, "validation")


def test_actors_that_die_over_a_measurement_fail_the_run(make: Make, installed: Install) -> None:
    installed(measure=["dies"] * 9)
    with pytest.raises(RunError, match="a worker process ended"):
        run(make("together"), Watch())


def test_what_an_actor_cannot_load_ends_the_run(make: Make, installed: Install) -> None:
    installed(load=["there is no such file here"])
    with pytest.raises(RunError, match="cannot load what the run needs: there is no such file here"):
        run(make("together", engine={"name": "ray", "workers": 1}), Watch())


def test_without_any_actor_the_run_fails(make: Make, installed: Install) -> None:
    installed(load=["dies"] * 6)
    with pytest.raises(RunError, match="no Ray actor could be started: it was killed"):
        run(make("together"), Watch())


def test_an_error_ends_the_actors_at_once(make: Make, installed: Install) -> None:
    fake = installed(load=["hangs", ""], answer=["hangs"])
    began = time.monotonic()
    config = settle(make("together"))
    worker, method = worker_for(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    with suppress(KeyboardInterrupt), engine_of(config) as engine:
        engine.measure(state, "validation", False)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30
    assert all(actor.dead for actor in fake.actors)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ray-")]
