"""Ray actors give the sequential bits, also when one is killed mid-round; whatever Ray lacks is said clearly.

Skipped without Ray, unless FEDLORA_REQUIRE_RAY is set.
"""

import gc
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from flwr.clientapp import ClientApp

from fedlora.client.worker import worker_for
from fedlora.config.rules import contradictions
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.errors import RunError
from fedlora.privacy.ledger import open_ledger
from fedlora.server.checkpoint import load
from fedlora.server.records import Outcome, RunHistory, RunStatus
from fedlora.simulations import ray_link
from fedlora.simulations.engines import ENGINES, engine_words, settle
from fedlora.simulations.ray_actors import places
from fedlora.simulations.ray_link import connected
from fedlora.simulations.ray_resident import Resident
from fedlora.simulations.simulate import Watch, resolve, run
from tests.tiny import tiny_config

Make = Callable[..., RunConfig]

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None and not os.environ.get("FEDLORA_REQUIRE_RAY"),
    reason="ray is not installed: pip install -e '.[ray]'",
)


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Make:
    def config(store: str, **updates: Any) -> RunConfig:
        engine = {"name": "ray", "workers": 2} if store != "alone" else {"name": "sequential"}
        return tiny_config(
            tiny_bert,
            tiny_text_csv,
            **{"engine": engine, "store": tmp_path / store, "federation.cohort": 3, **updates},
        )

    return config


@pytest.fixture(scope="module")
def ray(tiny_bert: Path, tiny_text_csv: Path) -> Iterator[Any]:
    """A Ray of two places, started once for the tests here as a run starts its own; nothing of it is left."""
    config = tiny_config(tiny_bert, tiny_text_csv, engine={"name": "ray", "workers": 2})
    handler = signal.getsignal(signal.SIGTERM)
    before = set(psutil.Process().children(recursive=True))
    with ExitStack() as stack:
        with rays_files_ignored():
            module = stack.enter_context(connected(config, gpus=0))
        assert signal.getsignal(signal.SIGTERM) is handler
        assert set(psutil.Process().children()) - before
        yield module
        with rays_files_ignored():
            stack.close()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert "RAY_AUTH_TOKEN" not in os.environ


@contextmanager
def rays_files_ignored() -> Iterator[None]:
    """Ray leaves files and ended processes to the garbage collector, which Python warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def trained(history: RunHistory) -> dict[str, Any]:
    assert history.run.status is RunStatus.FINISHED
    rows = [row for record in history.rounds for row in record.roster]
    assert {row.outcome for row in rows} == {Outcome.REPORTED}
    return dict(load(history.run.folder, history.run.rounds).state.shared)


def assert_same(ours: RunHistory, theirs: RunHistory) -> None:
    """Threads are equal here, and so are bits."""
    found = trained(ours)
    for name, values in trained(theirs).items():
        np.testing.assert_array_equal(found[name], values)
    timed = ("seconds",)
    for name, value in theirs.run.summary.items():
        assert name in timed or ours.run.summary[name] == value, name


@contextmanager
def first_call_killed() -> Iterator[list[int]]:
    """Kills the first actor of this process's Ray that is seen to answer clients; the list then holds its id."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not killed and not over.wait(0.01):
            for process in psutil.Process().children(recursive=True):
                if _answers(process):
                    process.kill()
                    killed.append(process.pid)
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _answers(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] == ["ray::Resident.answer"]
    except psutil.Error:
        return False


@needs_ray
def test_two_actors_give_the_sequential_bits(make: Make, ray: Any) -> None:
    alone, together = (run(make(store, strategy={"name": "fed_sb"}), Watch()) for store in ("alone", "together"))
    assert_same(together, alone)
    assert ray.is_initialized()  # it was there before the run, and stays


@needs_ray
def test_an_actor_that_is_killed_mid_round_costs_nothing_but_time(
    make: Make, ray: Any, caplog: pytest.LogCaptureFixture
) -> None:
    privacy = {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}
    updates: dict[str, Any] = {"privacy": privacy, "train.steps": 60, "federation.rounds": 1}
    alone = run(make("alone", **updates), Watch())
    with first_call_killed() as killed:
        together = run(make("together", **updates), Watch())
    assert killed
    assert "a Ray actor died over a call" in caplog.text
    assert_same(together, alone)
    for kinds in entries(together):
        assert kinds.count("released") == kinds.count("begun") - kinds.count("void") == 1


def entries(history: RunHistory) -> list[list[str]]:
    """The kinds of entries in the ledger of each client."""
    found = []
    for folder in sorted((history.run.folder / "ledgers").glob("client-*")):
        with open_ledger(folder) as ledger:
            found.append([str(entry["kind"]) for entry in ledger._journal.entries])
    return found


def test_ledgers_that_an_actor_does_not_see_are_refused(make: Make, tmp_path: Path) -> None:
    resident = Resident(make("together").model_dump_json(), str(tmp_path), str(tmp_path / "elsewhere" / ".seen-1"))
    before = Path.cwd()
    try:
        assert "privacy.ledgers" in resident.load()
    finally:
        os.chdir(before)


@needs_ray
def test_another_client_app_is_refused(make: Make) -> None:
    config = settle(make("together"))
    with pytest.raises(RunError, match="own client app"), ENGINES["ray"](config, ClientApp(), worker_for(config)):
        pass


def test_a_missing_ray_is_said_before_anything_loads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_link, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install 'fedlora\[ray\]'"):
        run(make("together", **{"model.path": Path("nowhere")}), Watch())


@needs_ray
@pytest.mark.parametrize(
    ("address", "problem"),
    [("127.0.0.1:{free}", "nothing answers there"), ("ray://127.0.0.1:{free}", "nothing"), ("head", "no address of")],
)
def test_a_bad_address_is_said_at_once(make: Make, address: str, problem: str) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    address = address.format(free=free)
    config = make("together", engine={"name": "ray", "address": address})
    began = time.monotonic()
    with pytest.raises(RunError, match=problem) as raised:
        run(config, Watch())
    assert f"engine.address={address}" in str(raised.value)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("cores", "asked", "threads", "expected"),
    [
        (4, {}, None, ("ray", 3, 1)),  # no more actors than clients in a round
        (2, {}, None, ("ray", 2, 1)),
        (8, {}, 4, ("ray", 2, 4)),
        (1, {"workers": 2}, None, ("ray", 2, 1)),
        (4, {"address": "head:1"}, None, ("ray", None, 1)),  # the cluster's places decide
    ],
)
def test_actors_and_threads_are_settled(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    asked: dict[str, object],
    threads: int | None,
    expected: tuple[str, int | None, int],
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(ray_link, "find_spec", lambda name: name)
    config = make("together", **{"train.threads": threads, "train.device": "cpu"})
    settled = settle(config.model_copy(update={"engine": EngineConfig(name="ray", **asked)}))
    assert (settled.engine.name, settled.engine.workers, settled.train.threads) == expected
    assert settle(settled) == settled
    assert "Ray actors" in engine_words(settled)


@pytest.mark.parametrize(
    ("updates", "resources", "expected"),
    [
        ({}, {"CPU": 8.0}, (2, {"num_gpus": 0, "num_cpus": 1})),
        ({"engine.workers": None}, {"CPU": 8.0}, (3, {"num_gpus": 0, "num_cpus": 1})),
        ({"engine.workers": None, "train.threads": 4}, {"CPU": 8.0}, (2, {"num_gpus": 0, "num_cpus": 4})),
        ({"engine.workers": None, "train.device": "auto"}, {"CPU": 8.0, "GPU": 2.0}, (2, {"num_gpus": 1})),
        ({"engine.workers": None, "train.device": "cpu"}, {"CPU": 1.0, "GPU": 2.0}, (1, {"num_gpus": 0})),
    ],
)
def test_one_actor_a_device(
    make: Make, updates: dict[str, object], resources: dict[str, float], expected: tuple[int, dict[str, int]]
) -> None:
    count, options = places(make("together", **updates), resources)
    assert count == expected[0]
    assert expected[1].items() <= options.items()


def test_no_place_for_an_actor_is_said(make: Make) -> None:
    with pytest.raises(RunError, match="no GPU"):
        places(make("together", **{"train.device": "cuda"}), {"CPU": 8.0})
    with pytest.raises(RunError, match="no place"):
        places(make("together", **{"train.device": "cpu"}), {})


def test_an_address_without_ray_contradicts_itself(make: Make) -> None:
    config = resolve(make("alone"))
    (found,) = contradictions(
        config.model_copy(update={"engine": EngineConfig(name="sequential", address="head:6379")})
    )
    assert found.keys == ("engine.address", "engine.name")
