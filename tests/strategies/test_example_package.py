"""The example package, installed as a user installs it, into a folder of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlora.adapters.manifest import Delivery
from fedlora.server.aggregation_error import AggregationError
from fedlora.strategies.base import Strategy, global_tensors, keeps_client_state
from fedlora.strategies.registry import get, strategies
from tests.strategies import worlds

EXAMPLE = Path(__file__).parents[2] / "examples" / "fedlora-fedsa"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the package into; built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("example")
    source, target = folder / "source", folder / "target"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def fedsa(installed: Path, monkeypatch: pytest.MonkeyPatch) -> type[Strategy]:
    monkeypatch.syspath_prepend(installed)
    return get("fedsa_lora")


def test_it_is_found_through_its_entry_point(fedsa: type[Strategy]) -> None:
    assert strategies()["fedsa_lora"] is fedsa
    assert fedsa.__module__ == "fedlora_fedsa"


def test_only_a_travels_and_b_and_the_head_are_the_clients_own(fedsa: type[Strategy]) -> None:
    state = fedsa().start(worlds.setup())
    names = [f"{module}.lora_A" for module in worlds.MODULES]
    assert state.manifest.uploaded() == list(state.shared) == names
    assert list(state.local) == state.manifest.names(Delivery.LOCAL)
    assert "head.score.weight" in state.local
    assert keeps_client_state(state.manifest)
    assert state.manifest.nbytes(names, head=False) == 4 * 3 * sum(k for _, k in worlds.MODULES.values())


def test_the_head_is_shared_on_request_and_sent_once_if_frozen(fedsa: type[Strategy]) -> None:
    shared = fedsa(share_head=True).start(worlds.setup())  # type: ignore[call-arg]
    assert "head.score.weight" in shared.manifest.uploaded()
    frozen = fedsa().start(worlds.setup(train_head=False))
    assert "head.score.weight" in frozen.fixed


def test_a_round_averages_a_and_leaves_the_rest_alone(fedsa: type[Strategy]) -> None:
    strategy = fedsa()
    state = worlds.start(strategy, worlds.setup())
    answers = worlds.updates(state, 4)
    new, _ = worlds.aggregate(strategy, state, answers)
    total = sum(each.weight for each in answers)
    for name in state.shared:
        np.testing.assert_allclose(new.shared[name], sum(u.weight / total * u.tensors[name] for u in answers))
        assert not np.array_equal(new.shared[name], state.shared[name])
    assert new.local is state.local
    # The server's own model has the initial B, so it is the base model; and there is no aggregation error to tell.
    for module in worlds.MODULES:
        assert not worlds.dense(new.manifest, global_tensors(new), module).any()
    assert AggregationError.begin(state).fold(answers[0]).finish(new) is None
