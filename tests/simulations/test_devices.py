"""Simulated devices: their distributions, when they are there, and what becomes of a work, second by second."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.config.traces import Interval, Traced
from fedlora.simulations.course import Course, Rules, Work, busy_seconds, course_of
from fedlora.simulations.devices import Device, Devices, Presence, Stay, _told_presence
from tests.simulations.timed_runs import virtual_config

ALWAYS = Presence(iter(()), True)


def devices(**virtual: Any) -> Devices:
    return Devices(virtual_config({"clients": 4000, "cohort": 4}, **virtual))


def test_without_a_spread_all_are_alike_and_always_there() -> None:
    assert devices().of(3) == Device(1.0, math.inf, math.inf)
    assert devices().presence(3).at(5.0) == Stay(True, -math.inf, math.inf)


def test_speeds_and_bandwidths_have_the_spread_that_is_asked_for_around_their_median() -> None:
    found = [devices(speed_spread=0.5, up=2.0, down=8.0, bandwidth_spread=1.0).of(client) for client in range(400)]
    for values, median, spread in (
        ([device.speed for device in found], 1.0, 0.5),
        ([device.up for device in found], 2e6, 1.0),
    ):
        logs = [math.log(value / median) for value in values]
        mean = sum(logs) / len(logs)
        deviation = math.sqrt(sum((each - mean) ** 2 for each in logs) / len(logs))
        assert abs(mean) < 4 * spread / math.sqrt(400)
        assert deviation == pytest.approx(spread, rel=0.15)
    assert all(device.down == pytest.approx(4 * device.up) for device in found)
    assert abs(sum(math.log(d.speed) * math.log(d.up / 2e6) for d in found)) / 400 < 0.15  # independent


def test_clients_are_there_for_the_share_of_the_time_that_is_asked_for_from_the_start_on() -> None:
    made = devices(availability=0.3, stay=50.0)
    assert sum(made.presence(client).at(0.0).there for client in range(1000)) == pytest.approx(300, abs=60)
    assert sum(made.presence(client).at(777.0).there for client in range(1000)) == pytest.approx(300, abs=60)
    stays, time = list[float](), 0.0
    while len(stays) < 1000:
        stay = made.presence(7).at(time)
        assert stay.since <= time < stay.until
        if stay.there and stay.since > 0:
            stays.append(stay.until - stay.since)
        time = stay.until
    assert sum(stays) / 1000 == pytest.approx(50.0, rel=0.15)
    assert sum(stays) / time == pytest.approx(0.3, rel=0.15)


def test_a_device_depends_on_the_seed_and_its_number_alone() -> None:
    settings = {"speed_spread": 1.0, "availability": 0.5, "stay": 5.0}
    early, late = devices(**settings), devices(**settings)
    for client in range(50):
        late.presence(client).at(1000.0)
    assert early.of(9) == late.of(9)
    early_stays, late_stays = ([made.presence(9).at(t) for t in (0.0, 3.0, 90.0, 3.0)] for made in (early, late))
    assert early_stays == late_stays
    assert early.of(5) != Devices(virtual_config(seed=1, speed_spread=1.0)).of(5)


def test_a_trace_says_what_else_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("speed,up,down,available\n0.5,1,2,0-10;20-30\n,,,\n" + "2,,,5-6\n" * 4)
    made = Devices(virtual_config(trace=path, period=100.0))
    assert (made.of(0), made.of(1)) == (Device(0.5, 1e6, 2e6), Device(1.0, math.inf, math.inf))
    assert made.presence(1).at(1e9) == Stay(True, -math.inf, math.inf)
    first = made.presence(0)
    assert first.at(0.0) == Stay(True, 0.0, 10.0)
    assert first.at(10.0) == Stay(False, 10.0, 20.0)
    assert first.at(125.0) == Stay(True, 120.0, 130.0)
    assert first.at(135.0) == Stay(False, 130.0, 200.0)


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 20), max_size=8, unique=True).map(sorted),
    period=st.sampled_from([None, 20.0, 25.0]),
    time=st.integers(0, 70),
)
def test_told_intervals_are_there_and_nothing_else(cuts: list[int], period: float | None, time: int) -> None:
    stays: list[Interval] = [(float(a), float(b)) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    within = time if period is None else time % period
    stay = _told_presence(stays, period).at(float(time))
    assert stay.there is any(start <= within < end for start, end in stays)
    assert stay.since <= time < stay.until
    assert math.isinf(stay.until) or _told_presence(stays, period).at(stay.until).there is not stay.there


def test_intervals_that_touch_are_one_also_over_the_end_of_a_period() -> None:
    assert _told_presence([(0.0, 5.0), (5.0, 10.0)], None).at(5.0) == Stay(True, 0.0, 10.0)
    assert _told_presence([(0.0, 5.0), (15.0, 20.0)], 20.0).at(20.0) == Stay(True, 15.0, 25.0)
    assert _told_presence([(0.0, 5.0), (5.0, 20.0)], 20.0).at(77.0) == Stay(True, -math.inf, math.inf)
    assert _told_presence([], 20.0).at(77.0) == Stay(False, -math.inf, math.inf)
    assert Traced(available=None).available is None


def test_a_work_takes_both_ways_and_the_training() -> None:
    device = Device(0.5, up=1e6, down=4e6)
    work = Work(down=1_000_000, up=250_000, records=30)
    assert busy_seconds(device, work, Rules(0.1, 0.25)) == pytest.approx(0.5 + 2.0 + 2.0 + 6.0)


def second_by_second(toggles: list[int], first: bool, asked: int, needed: int, absence: int) -> tuple[int, bool]:
    """When a client of whole seconds ends a work, and whether it gives an answer."""

    def there(second: int) -> bool:
        return first ^ bool(sum(toggle <= second for toggle in toggles) % 2)

    left, now = needed, asked
    while left:
        gone = max((toggle for toggle in toggles if toggle <= now), default=-1000)
        if there(now):
            left -= 1
        elif now >= gone + absence:
            return now, False
        now += 1
    return now, True


@settings(max_examples=300, deadline=None)
@given(
    toggles=st.lists(st.integers(0, 40), max_size=6, unique=True).map(sorted),
    first=st.booleans(),
    asked=st.integers(0, 40),
    needed=st.integers(1, 12),
    absence=st.integers(0, 10),
)
def test_the_end_of_a_work_is_that_of_a_walk_through_all_seconds(
    toggles: list[int], first: bool, asked: int, needed: int, absence: int
) -> None:
    presence = Presence(iter(map(float, toggles)), first)
    found = course_of(needed, None, presence, absence, asked)
    assert (found.ends, not found.lost) == second_by_second(toggles, first, asked, needed, absence)
    assert not found.lost or "away " in found.lost


def test_who_drops_out_is_away_from_then_on() -> None:
    found = course_of(40.0, 0.25, ALWAYS, 7.0, 100.0)
    assert found == Course(100.0, 117.0, 40.0, "dropped out after 10 of 40 s of work")


def test_who_is_away_is_named_with_the_time_of_its_return() -> None:
    lost = course_of(10.0, None, Presence(iter([50.0, 340.0]), True), 120.0, 45.0)
    assert lost.ends == 170.0
    assert lost.lost == "away until 340 s of virtual time: nobody waits longer than 120 s (federation.absence)"
    waited_for = course_of(500.0, None, Presence(iter([50.0, 340.0]), True), 600.0, 45.0)
    assert waited_for == Course(45.0, 45.0 + 500 + 290, 500.0)
