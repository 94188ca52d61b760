"""When a site works: windows against a walk through the day, minute by minute."""

from datetime import datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedlora.client.hours import DAY, Window, is_open, next_opening

minutes = st.integers(0, DAY - 1)
MIDNIGHT = datetime(2031, 5, 1)


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def walked(start: int, end: int) -> set[int]:
    """The minutes that a clock shows from `start` until it shows `end`."""
    inside, at = set(), start
    while at != end % DAY:
        inside.add(at)
        at = (at + 1) % DAY
    return inside


@given(minutes, st.integers(0, DAY))
def test_a_window_holds_what_a_clock_shows_between_its_ends(start: int, end: int) -> None:
    assume(start != end and (start, end) != (0, DAY))
    text = f"{clock(start)}-{clock(end)}"
    inside = {minute for minute in range(DAY) if is_open([text], MIDNIGHT + timedelta(minutes=minute))}
    assert inside == walked(start, end)


@given(st.lists(st.tuples(minutes, minutes).filter(lambda ends: ends[0] != ends[1]), min_size=1, max_size=4), minutes)
def test_several_windows_are_their_union_and_the_next_opening_is_the_first(
    ends: list[tuple[int, int]], at: int
) -> None:
    texts = [f"{clock(start)}-{clock(end)}" for start, end in ends]
    now = MIDNIGHT + timedelta(minutes=at, seconds=59)
    assert is_open(texts, now) == any(at in walked(*pair) for pair in ends)
    waits = next(wait for wait in range(1, DAY + 1) if (at + wait) % DAY in {start for start, _ in ends})
    assert next_opening(texts, now) == clock((at + waits) % DAY)


def test_the_ends_to_the_minute() -> None:
    for time, expected in (("19:59", False), ("20:00", True), ("23:59", True), ("05:59", True), ("06:00", False)):
        assert is_open(["20:00-06:00"], datetime.fromisoformat(f"2031-05-01 {time}:00")) is expected


def test_no_windows_and_the_whole_day_are_always() -> None:
    for minute in range(0, DAY, 7):
        now = MIDNIGHT + timedelta(minutes=minute)
        assert is_open([], now)
        assert is_open(["00:00-24:00"], now)


@pytest.mark.parametrize(
    "text",
    ["", "20:00", "20-06", "24:00-06:00", "20:60-21:00", "8:00-9:00", "20:00-24:01", "07:00-07:00", "1:00-2:00x"],
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match=r"times of day|begins when it ends"):
        Window.parse(text)
