"""The page about site policies says what the code says."""

import re
from pathlib import Path

from fedlora.client.home import SiteHome
from fedlora.client.policy import policy_keys
from fedlora.client.policy_docs import main, render

PAGE = Path(__file__).parents[2] / "docs" / "site-policy.md"


def test_the_page_is_current(tmp_path: Path) -> None:
    main([str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == render()
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m fedlora.client.policy_docs"


def test_every_key_is_explained_once() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| .+ \| .* \| (.+) \|$", render(), re.MULTILINE)
    names = [name for name, _ in rows if name in policy_keys()]
    assert sorted(names) == sorted(set(policy_keys()) - {"models", "data"})
    assert all(key.description for key in policy_keys().values())


def test_every_place_of_a_home_is_explained() -> None:
    home = SiteHome(Path("home"))
    places = [getattr(home, name) for name, value in vars(SiteHome).items() if isinstance(value, property)]
    names = [place.name for place in places if isinstance(place, Path)]
    assert len(names) > 12
    layout = render().split("## What is in a home")[1]
    assert [name for name in names if f"`{name}" not in layout] == []
