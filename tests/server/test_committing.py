"""When a round may begin before the one before it is durable."""

from pathlib import Path
from typing import Any

import pytest

from fedlora.server.committing import may_begin_ahead
from tests.tiny import tiny_config

SITES = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("privacy", "sites", "buffered", "ahead"),
    [
        ({"name": "none"}, (), False, True),
        ({"name": "none"}, SITES, False, True),
        ({"name": "none"}, SITES, True, True),
        ({"name": "dp", "noise_multiplier": 1.0}, (), False, True),
        ({"name": "dp", "noise_multiplier": 1.0}, SITES, False, False),
        ({"name": "dp", "noise_multiplier": 1.0}, SITES, True, False),
        ({"name": "central", "noise_multiplier": 1.0}, (), False, False),
        ({"name": "central", "noise_multiplier": 1.0}, SITES, False, False),
    ],
)
def test_no_round_begins_ahead_that_a_crash_could_make_begin_twice(
    privacy: dict[str, Any],
    sites: tuple[str, ...],
    buffered: bool,
    ahead: bool,
    tiny_bert: Path,
    tiny_text_csv: Path,
) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv, privacy=privacy, federation={"sites": sites, "buffered": buffered})
    assert may_begin_ahead(config) is ahead
