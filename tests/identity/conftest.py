"""An authority, and certificates and a registry of it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedlora.identity.authority import Authority, create_authority
from fedlora.identity.registry import Registry
from fedlora.server.store import RunStore
from tests.postgres import postgres as postgres
from tests.postgres import store_url as store_url


class Hands:
    """A clock whose hands a test moves."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time

    def move(self, **by: float) -> None:
        self.time += timedelta(**by)


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create_authority(tmp_path_factory.mktemp("authority") / "ca", "tests")


@pytest.fixture
def registry(tmp_path: Path, clock: Hands, store_url: str | None) -> Iterator[Registry]:
    with RunStore.open(tmp_path, url=store_url) as store:
        yield Registry(store.database, clock)
