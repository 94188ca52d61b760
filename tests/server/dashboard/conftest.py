from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.dashboard.entrance import Entrance, entrance


@pytest.fixture
def door(tmp_path: Path, store_url: str | None) -> Iterator[Entrance]:
    """A dashboard for one test."""
    with entrance(tmp_path / "home", url=store_url) as found:
        yield found
