"""What was made of a run's rounds, kept and carried on as rounds are committed: 20 open pages ask for it at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from fedlora.errors import StoreError
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.scrub import FILE as ERASED
from fedlora.server.views.queries import Queries, Span

T = TypeVar("T")
V = TypeVar("V")

NOTHING = -1
"""The round before the first."""

_ENDED = (RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED)


@dataclass(frozen=True)
class _Mark:
    """Until where a kept value goes, and what must still be so for it to hold."""

    last: int
    committed_at: datetime | None
    erased: int
    ended: datetime | None


@dataclass
class _Kept(Generic[T, V]):
    value: T
    mark: _Mark
    shown: V | None = None


class Growing(Generic[T, V]):
    """Values by run (and a second key). The least recently used go first; erasures and lost rounds begin anew.

    empty: a value of no rounds. grow: adds the rounds of a span to it, for a key. shown: what is given out of it, which
    never changes. They are called by one thread at a time. keep: how many values.
    """

    def __init__(
        self,
        queries: Queries,
        empty: Callable[[], T],
        grow: Callable[[T, Span, str], None],
        shown: Callable[[T], V],
        *,
        keep: int = 32,
    ) -> None:
        self._queries, self._keep = queries, keep
        self._empty, self._grow, self._show = empty, grow, shown
        self._kept: OrderedDict[tuple[str, str], _Kept[T, V]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run: RunInfo, key: str = "") -> V:
        """The value of all committed rounds of `run`, which was just read from the store."""
        with self._lock:
            kept = self._kept.get((run.id, key))
            if kept is None or not self._holds(kept.mark, run):
                kept = _Kept(self._empty(), _Mark(NOTHING, None, erased_stamp(run), None))
            shown = kept.shown
            if shown is None or (kept.mark.last, kept.mark.ended) != (run.rounds_done, _ended(run)):
                shown = self._carry_on(kept, run, key)
            self._remember((run.id, key), kept)
            return shown

    def _carry_on(self, kept: _Kept[T, V], run: RunInfo, key: str) -> V:
        last, committed = run.rounds_done, self._queries.committed_at(run.id, run.rounds_done)
        mark = _Mark(last, committed, kept.mark.erased, _ended(run))  # before the rounds: later changes are noticed
        shown = kept.shown
        if shown is None or kept.mark.last < last:
            self._grow(kept.value, Span(run.id, kept.mark.last, last), key)
            shown = self._show(kept.value)
        kept.mark, kept.shown = mark, shown
        return shown

    def _remember(self, place: tuple[str, str], kept: _Kept[T, V]) -> None:
        self._kept[place] = kept
        self._kept.move_to_end(place)
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)

    def _holds(self, mark: _Mark, run: RunInfo) -> bool:
        if mark.erased != erased_stamp(run) or mark.last > run.rounds_done:
            return False
        if mark.ended is not None and (mark.ended, mark.last) == (_ended(run), run.rounds_done):
            return True
        return mark.committed_at == self._queries.committed_at(run.id, mark.last)


def _ended(run: RunInfo) -> datetime | None:
    """When the run ended; None while it may go on."""
    return run.finished_at if run.status in _ENDED else None


def erased_stamp(run: RunInfo) -> int:
    """Changes whenever something is erased of the run; 0: nothing was."""
    try:
        return (run.folder / ERASED).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StoreError(f"cannot look at {run.folder / ERASED}: {error.strerror or error}") from error
