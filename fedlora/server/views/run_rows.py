"""Rows of a list of runs: what has ended is kept, what is under way is looked at anew."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import median

from fedlora.server.participation import warning
from fedlora.server.queue import STOP
from fedlora.server.records import Numbers, Outcome, RosterRow, RoundRecord, RunHistory, RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.server.views.epsilon import Epsilons, Promise, at_most, promise
from fedlora.server.views.facts import Facts, facts
from fedlora.server.views.growing import erased_stamp
from fedlora.server.views.health import Signs, judge, seconds_since
from fedlora.server.views.log import under_way
from fedlora.server.views.metrics import finite, main_metric, test_name
from fedlora.server.views.model import Health, RunRow, Status
from fedlora.server.views.presence import Waiting, Whereabout
from fedlora.server.views.queries import Head, Queries
from fedlora.server.views.rounds import Rounds
from fedlora.server.views.tallies import Tallies

_OF_THE_MEDIAN = 9  # recent rounds
_KEPT = 2000  # rows of runs that have ended


@dataclass(frozen=True)
class Surroundings:
    """What a row depends on beside the store. now: the moment. whereabout: of clients. waiting: see `Waiting`. driven:
    the run that this process's daemon drives, None: it drives none, or there is no daemon. ahead: queued runs, in their
    order.
    """

    now: datetime
    whereabout: Whereabout
    waiting: Waiting
    driven: str | None = None
    ahead: Sequence[str] = ()


@dataclass(frozen=True)
class _Numbers:
    """Of a run's committed rounds."""

    heads: Sequence[Head] = ()
    traffic: tuple[int, int, int] = (0, 0, 0)


@dataclass
class _Ended:
    """Rows of ended runs, by what they follow from."""

    rows: dict[str, tuple[tuple[object, ...], RunRow]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, run: RunInfo) -> RunRow | None:
        with self.lock:
            kept = self.rows.get(run.id)
        return kept[1] if kept is not None and kept[0] == _stamp(run) else None

    def keep(self, run: RunInfo, row: RunRow) -> None:
        with self.lock:
            self.rows[run.id] = _stamp(run), row
            while len(self.rows) > _KEPT:
                del self.rows[next(iter(self.rows))]


class RunRows:
    """Of one store."""

    def __init__(self, store: RunStore, queries: Queries, rounds: Rounds, tallies: Tallies, epsilons: Epsilons) -> None:
        self._store, self._queries, self._rounds = store, queries, rounds
        self._tallies, self._epsilons = tallies, epsilons
        self._ended = _Ended()

    def of(self, runs: Sequence[RunInfo], around: Surroundings) -> Sequence[RunRow]:
        """One row for each of `runs`, which were just read, in their order."""
        rows = {run.id: row for run in runs if (row := self._ended.of(run)) is not None}
        missing = [run for run in runs if run.id not in rows]
        numbers = self._numbers([run.id for run in missing])
        rows |= {run.id: self._row(run, numbers.get(run.id, _Numbers()), around) for run in missing}
        return [rows[run.id] for run in runs]

    def _numbers(self, runs: Sequence[str]) -> Mapping[str, _Numbers]:
        if not runs:
            return {}
        heads, traffic = self._queries.heads(runs), self._queries.traffic(runs)
        return {run: _Numbers(found, traffic.get(run, (0, 0, 0))) for run, found in heads.items()}

    def _row(self, run: RunInfo, numbers: _Numbers, around: Surroundings) -> RunRow:
        names, promised = facts(run), promise(run)
        row = self._with_numbers(_bare(run, names, promised), run, names, numbers)
        epsilon, bound = self._epsilon(run, names, promised)
        row = replace(row, epsilon=epsilon, epsilon_at_most=bound, participation=self._participation(run, names))
        if run.status not in _OVER:
            return self._alive(run, names, row, around)
        if not bound and (epsilon is not None or promised.total is None):  # else a later look knows more
            self._ended.keep(run, row)
        return row

    def _with_numbers(self, row: RunRow, run: RunInfo, names: Facts, numbers: _Numbers) -> RunRow:
        metric, value = self._metric(run, names, numbers.heads)
        up, down, once = numbers.traffic
        return replace(
            row,
            metric_name=metric,
            metric=value,
            test_metric=finite(run.summary.get(test_name(metric))),
            bytes_up=up,
            bytes_down=down,
            bytes_once=once,
            last_commit=numbers.heads[0].committed_at if numbers.heads else None,
            expected_seconds=_expected(numbers.heads, names),
        )

    def _alive(self, run: RunInfo, names: Facts, row: RunRow, around: Surroundings) -> RunRow:
        status, stopping = self._status(run, around)
        row = replace(row, status=status, stop_requested=stopping)
        health, reason = self._health(run, names, row, around)
        eta = None if row.expected_seconds is None else row.expected_seconds * (row.rounds - row.round)
        return replace(row, health=health, health_reason=reason, eta_seconds=eta if row.round else None)

    def _status(self, run: RunInfo, around: Surroundings) -> tuple[Status, bool]:
        if run.status is not RunStatus.RUNNING:
            return _STATUS[run.status], False
        stopping = (run.folder / STOP).exists()
        if run.id != around.driven and self._store.holder(run) is None:
            return "interrupted", stopping
        return ("stopping" if stopping else "running"), stopping

    def _health(self, run: RunInfo, names: Facts, row: RunRow, around: Surroundings) -> tuple[Health, str]:
        if row.status == "queued":
            place = around.ahead.index(run.id) if run.id in around.ahead else 0
            return "waiting", "Waiting for its turn" + (f": {place} queued before it." if place else ".")
        if row.status == "interrupted":
            after = f"after round {run.rounds_done}" if row.last_commit else "before its first commit"
            return "stalled", f"The process that drove it died {after}: it goes on from there when it is resumed."
        return judge(self._signs(run, names, row, around), around.now)

    def _signs(self, run: RunInfo, names: Facts, row: RunRow, around: Surroundings) -> Signs:
        holder = self._store.holder(run)
        since = None if holder is None else _moment(holder.since)
        moments = [moment for moment in (row.last_commit, since) if moment is not None]
        latest = max(moments, default=run.created_at)
        log, waiting = under_way(run), around.waiting(run.id)
        cohort = [names.name(client) for client in log.cohort if client not in log.done]
        return Signs(
            quiet=seconds_since(latest, around.now),
            expected=row.expected_seconds,
            timeout=names.timeout,
            round=row.round + 1,
            sites=[around.whereabout.of(site) for site in names.sites],
            awaited=[around.whereabout.of(site) for site in (cohort if waiting is None else waiting) if names.sites],
            retried=log.retried,
        )

    def _metric(self, run: RunInfo, names: Facts, heads: Sequence[Head]) -> tuple[str, float | None]:
        """The main metric's name, and its last value: of a recent round, or of the last one that was measured."""
        measured = run.rounds_done - run.rounds_done % names.every
        figures: list[Numbers] = [head.metrics for head in heads]
        if not any(_measured(found) for found in figures) and heads and measured < heads[-1].round:
            figures.append(self._queries.metrics(run.id, measured))
        metric = main_metric([name for found in figures for name in found], names.metric)
        return metric, next((finite(found[metric]) for found in figures if metric in found), None)

    def _epsilon(self, run: RunInfo, names: Facts, promised: Promise) -> tuple[float | None, bool]:
        if names.privacy == "none" or promised.total is None:
            return None, False
        if run.status is RunStatus.FINISHED and promised.largest is not None:
            return promised.largest, False
        spent = run.rounds_done if names.privacy == "central" else self._spent(run)
        if run.status is not RunStatus.QUEUED:
            self._epsilons.want(run, promised, spent)
        return at_most(self._epsilons.known(run, promised), spent)

    def _spent(self, run: RunInfo) -> int:
        return self._rounds.rosters(run).spending.get(run.rounds_done, 0)

    def _participation(self, run: RunInfo, names: Facts) -> str:
        """Rosters of many rounds as one, which is as good for this."""
        if not names.sites or not run.rounds_done:
            return ""
        found = self._tallies.of(run).counts
        outcome = {True: Outcome.REPORTED, False: Outcome.LOST}
        roster = [RosterRow(client, outcome["r" in tally.counts]) for client, tally in sorted(found.items())]
        return warning(RunHistory(run, [RoundRecord(1, {}, roster)]))


def _bare(run: RunInfo, names: Facts, promised: Promise) -> RunRow:
    """What the run itself says, as if it had ended."""
    return RunRow(
        id=run.id,
        name=run.name,
        status=_STATUS[run.status],
        health="",
        health_reason="",
        strategy=run.strategy,
        seed=run.seed,
        round=run.rounds_done,
        rounds=run.rounds,
        metric_name="",
        metric=None,
        test_metric=None,
        privacy=names.privacy,
        epsilon=None,
        epsilon_at_most=False,
        epsilon_total=promised.total,
        delta=promised.delta,
        bytes_up=0,
        bytes_down=0,
        bytes_once=0,
        last_commit=None,
        expected_seconds=None,
        eta_seconds=None,
        created_at=run.created_at,
        finished_at=run.finished_at,
        participation="",
        reason=run.reason,
        sweep=run.sweep,
        stop_requested=False,
    )


def _expected(heads: Sequence[Head], names: Facts) -> float | None:
    """Of a round: the median of the recent ones; of the first, its deadline."""
    seconds = [head.seconds for head in heads if head.round > 0][:_OF_THE_MEDIAN]
    return median(seconds) if seconds else names.timeout


def _measured(figures: Numbers) -> bool:
    return any(name.startswith("validation_") for name in figures)


def _stamp(run: RunInfo) -> tuple[object, ...]:
    return run.status, run.rounds_done, run.rounds, run.finished_at, run.name, run.sweep, run.reason, erased_stamp(run)


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


_OVER = (RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED)
_STATUS: Mapping[RunStatus, Status] = {
    RunStatus.QUEUED: "queued",
    RunStatus.RUNNING: "running",
    RunStatus.FINISHED: "finished",
    RunStatus.STOPPED: "stopped",
    RunStatus.FAILED: "failed",
}
