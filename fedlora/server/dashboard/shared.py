"""Answers that all open pages ask for after the same commit: made once, by whoever asks first."""

import gzip
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

WORTH_PACKING = 1400
"""Bytes: less fits in one packet anyway."""

LASTS = 1.0
"""Seconds for which an answer is good that depends on the time, too."""

_KEPT = 64


@dataclass(frozen=True)
class Packed:
    """A value as JSON. zipped: with gzip; None where that does not pay."""

    text: bytes
    zipped: bytes | None

    @classmethod
    def of(cls, value: Any) -> "Packed":
        """Numbers become finite or null."""
        text = to_json(value, inf_nan_mode="null")
        return cls(text, gzip.compress(text, 4) if len(text) > WORTH_PACKING else None)


@dataclass
class _Place:
    lock: threading.Lock = field(default_factory=threading.Lock)
    version: Hashable = None
    made: float = 0.0
    packed: Packed | None = None


class Shared:
    """For many threads. clock: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._places: OrderedDict[Hashable, _Place] = OrderedDict()

    def get(self, key: Hashable, version: Hashable, make: Callable[[], Any]) -> Packed:
        """What `make` gave for this key and version within the last LASTS seconds, or gives now; threads wait for it.

        key: the question and all of who asks that the answer depends on. Raises what `make` raises.
        """
        place = self._place(key)
        with place.lock:
            began = self._clock()
            if place.packed is None or place.version != version or began - place.made > LASTS:
                place.packed = Packed.of(make())
                place.version, place.made = version, began
            return place.packed

    def _place(self, key: Hashable) -> _Place:
        with self._lock:
            place = self._places.setdefault(key, _Place())
            self._places.move_to_end(key)
            while len(self._places) > _KEPT:
                self._places.popitem(last=False)
            return place
