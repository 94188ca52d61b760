"""What a run without a site is, beside what tests of erasure say."""

from pathlib import Path

from fedlora.server.restart import _reduced
from tests.tiny import tiny_config


def test_a_buffer_that_is_larger_than_what_is_left_shrinks(tiny_bert: Path, tiny_text_csv: Path) -> None:
    federation = {
        "sites": ("a", "b", "c", "d"),
        "clients": 4,
        "cohort": 4,
        "buffered": True,
        "buffer": 4,
    }
    config = tiny_config(tiny_bert, tiny_text_csv, federation=federation)
    left = _reduced(config, ["b"], done=1).federation
    assert (left.sites, left.clients, left.cohort, left.buffer, left.rounds) == (("a", "c", "d"), 3, 3, 3, 1)
    plain = tiny_config(tiny_bert, tiny_text_csv, federation={**federation, "buffered": False, "buffer": None})
    assert _reduced(plain, ["b"], done=0).federation.buffer is None
