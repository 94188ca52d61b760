"""What must be free before work begins."""

import math
import time

import psutil
import pytest

from fedlora.client.home import SiteHome
from fedlora.client.policy import Limits
from fedlora.client.resources import Free, busy_by_others, lacking, measured

PLENTY = Free(memory_mb=4000, disk_mb=9000, cpu_busy=10)


def limits(**values: float) -> Limits:
    return Limits.model_validate(values)


def test_without_limits_nothing_lacks(home: SiteHome) -> None:
    assert lacking(limits(), home, Free(0, 0, 100)) == []


@pytest.mark.parametrize(
    ("key", "enough", "too_much", "told"),
    [
        ("memory_mb_free_least", 4000, 4001, "4,000 MB of memory are free"),
        ("disk_mb_free_least", 9000, 9001, "9,000 MB on the home folder's disk are free"),
        ("cpu_busy_most", 10, 9.9, "others use 10 % of the processors"),
    ],
)
def test_each_limit_to_the_last_bit(home: SiteHome, key: str, enough: float, too_much: float, told: str) -> None:
    assert lacking(limits(**{key: enough}), home, PLENTY) == []
    (text,) = lacking(limits(**{key: too_much}), home, PLENTY)
    assert text == f"limits.{key} = {too_much:g}, and {told}."


def test_everything_that_lacks_is_said(home: SiteHome) -> None:
    asked = limits(memory_mb_free_least=1e9, disk_mb_free_least=1e9, cpu_busy_most=1)
    assert len(lacking(asked, home, PLENTY)) == 3


def test_what_is_measured_is_of_this_machine(home: SiteHome) -> None:
    began = time.monotonic()
    found = measured(limits(), home)
    assert time.monotonic() - began < 0.4, "the processors are looked at only if the policy asks"
    assert 0 < found.memory_mb < psutil.virtual_memory().total / 1e6
    assert math.isclose(found.disk_mb, psutil.disk_usage(str(home.folder)).free / 1e6, rel_tol=0.1)
    assert len(lacking(limits(memory_mb_free_least=1e12, disk_mb_free_least=1e12), home)) == 2


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)

    def own(interval: float) -> float:
        end = time.process_time() + interval
        while time.process_time() < end:
            pass
        return 60.0  # of the whole machine, of which one busy core of two is 50

    monkeypatch.setattr(psutil, "cpu_percent", own)
    assert busy_by_others(0.3) < 60 - 15  # this process may have to share its core


def test_the_load_of_others_is_what_the_machine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: time.sleep(interval) or 60.0)
    assert 50 < busy_by_others(0.2) <= 60
    monkeypatch.undo()
    assert 0 <= busy_by_others(0.1) <= 100
