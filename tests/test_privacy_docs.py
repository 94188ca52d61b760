"""docs/privacy.md says what the code says."""

from pathlib import Path

from fedlora.privacy.promises import MODES, REFUSED, WITHOUT
from tools.write_promises import rendered

PAGE = Path(__file__).parents[1] / "docs" / "privacy.md"


def test_the_table_of_combinations_is_the_codes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert rendered(page) == page, "run: python tools/write_promises.py"
    for row in (*REFUSED, *WITHOUT):
        assert row.because in page
    assert all(f"privacy={name}" in page for name in MODES if name != "none")


def test_a_changed_page_is_caught() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert rendered(page.replace("refused", "allowed")) != page.replace("refused", "allowed")
