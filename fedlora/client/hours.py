"""Times of day at which a site works, written like "20:00-06:00", in the site's local time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

DAY = 24 * 60
"""Minutes of a day."""

_TIME = r"([01][0-9]|2[0-3]):([0-5][0-9])"
_WINDOW = re.compile(rf"{_TIME}-(?:{_TIME}|24:00)")


@dataclass(frozen=True)
class Window:
    """From minute `start` of the day to before minute `end`; over midnight if the end is not after the start."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Raises ValueError unless `text` is like "08:30-17:00" or "20:00-06:00"; "00:00-24:00" is a whole day."""
        found = _WINDOW.fullmatch(text)
        if not found:
            raise ValueError("must be two times of day like '20:00-06:00' (00:00 to 23:59; the end may be 24:00)")
        first, second, third, fourth = found.groups()
        window = cls(int(first) * 60 + int(second), DAY if third is None else int(third) * 60 + int(fourth))
        if window.start == window.end:
            raise ValueError("begins when it ends: write '00:00-24:00' for the whole day")
        return window

    def holds(self, minute: int) -> bool:
        """Whether `minute` of the day is inside."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def is_open(windows: Sequence[str], now: datetime) -> bool:
    """Whether one of `windows` holds `now`, the site's local time. Without windows a site always works."""
    minute = _minute(now)
    return not windows or any(Window.parse(text).holds(minute) for text in windows)


def next_opening(windows: Sequence[str], now: datetime) -> str:
    """When the next of `windows` begins after `now`, e.g. "20:00". There must be one."""
    minute = _minute(now)
    start = min((Window.parse(text).start for text in windows), key=lambda begin: (begin - minute - 1) % DAY)
    return f"{start // 60:02}:{start % 60:02}"


def _minute(now: datetime) -> int:
    return now.hour * 60 + now.minute
