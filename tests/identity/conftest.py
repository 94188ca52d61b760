"""An authority, and certificates and a registry of it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedlora.identity.authority import Authority, create_authority
from fedlora.identity.registry import Registry
from fedlora.server.store.database import Database


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
def registry(tmp_path: Path, clock: Hands) -> Iterator[Registry]:
    database = Database(sa.URL.create("sqlite", database=str(tmp_path / "fedlora.db")), tmp_path)
    yield Registry(database, clock)
    database.close()
