"""Answers that are made once for many pages."""

import gzip
import json
import threading

import pytest

from fedlora.server.dashboard.shared import LASTS, WORTH_PACKING, Packed, Shared


class Maker:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> dict[str, int]:
        self.asked += 1
        return {"asked": self.asked}


def test_an_answer_is_made_once_for_a_version_and_a_second() -> None:
    moments = [0.0]
    shared, make = Shared(lambda: moments[0]), Maker()
    first = shared.get("key", 1, make)
    assert shared.get("key", 1, make) is first
    assert json.loads(shared.get("key", 2, make).text) == {"asked": 2}
    moments[0] = LASTS + 0.1
    assert json.loads(shared.get("key", 2, make).text) == {"asked": 3}


def test_other_keys_have_other_answers() -> None:
    shared = Shared()
    assert shared.get(("run", "viewer"), 1, lambda: 1).text == b"1"
    assert shared.get(("run", "operator"), 1, lambda: 2).text == b"2"


def test_who_asks_at_once_waits_for_the_first() -> None:
    shared, make, go = Shared(), Maker(), threading.Event()

    def slow() -> dict[str, int]:
        go.wait(10)
        return make()

    threads = [threading.Thread(target=shared.get, args=("key", 1, slow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert make.asked == 1


def test_what_fails_is_not_kept() -> None:
    shared = Shared()
    with pytest.raises(ZeroDivisionError):
        shared.get("key", 1, lambda: 1 // 0)
    assert shared.get("key", 1, lambda: 7).text == b"7"


def test_long_answers_are_packed_too_and_numbers_are_finite_or_null() -> None:
    assert Packed.of([float("nan"), 1]).text == b"[null,1]"
    assert Packed.of("short").zipped is None
    packed = Packed.of("x" * WORTH_PACKING)
    assert packed.zipped is not None
    assert gzip.decompress(packed.zipped) == packed.text
