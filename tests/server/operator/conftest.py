from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.operator.living import Living, living, make_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "ca"
    make_authority(folder)
    return folder


@pytest.fixture
def alive(tmp_path: Path, authority: Path) -> Iterator[Living]:
    with living(tmp_path / "home", authority) as found:
        yield found
