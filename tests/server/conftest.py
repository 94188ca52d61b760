import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fedlora.server.records import RunInfo
from fedlora.server.store import RunStore
from tests.postgres import postgres as postgres
from tests.postgres import store_url as store_url

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """`samples.py` as a module (scripts that run beside it import it by name)."""
    spec = importlib.util.spec_from_file_location("samples", HERE / "samples.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path: Path, store_url: str | None) -> Iterator[RunStore]:
    with RunStore.open(tmp_path / "runs", url=store_url) as opened:
        yield opened


@pytest.fixture
def run(store: RunStore, samples: ModuleType) -> RunInfo:
    return store.create(samples.config(), name="tiny")
