"""Numbers as people read them."""

import pytest

from fedlora.words import bytes_text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_537_400, "1.54 MB"), (2.5e12, "2.5 TB")]
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text
