from pathlib import Path

import pytest

from fedlora.client.home import SiteHome


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome.create(tmp_path / "site")
