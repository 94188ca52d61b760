"""What the entries of a ledger add up to. Each entry is applied once, when it is read or appended."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release
from fedlora.privacy.filter import Ceiling, Limits, divergence
from fedlora.privacy.outbox import check_run

_MOST = 10**9


@dataclass(frozen=True)
class Schedule:
    """What a run asks for: all of `releases` in each of at most `participations` rounds, numbered from 1.

    once: what it releases before round 1, as round 0 (an initialisation, say); it is no participation.

    Raises PrivacyError for a run id that cannot name a folder, a round that releases nothing, less than one round, or
    numbers that no run has.
    """

    run: str
    server: str
    releases: tuple[Release, ...]
    participations: int
    once: tuple[Release, ...] = ()

    def __post_init__(self) -> None:
        check_run(self.run)
        if type(self.participations) is not int or not 1 <= self.participations <= _MOST:
            raise PrivacyError(
                f"run {self.run!r} asks for {self.participations!r} rounds: at least 1 is needed, and at most {_MOST}"
            )
        if not self.releases:
            raise PrivacyError(f"run {self.run!r} releases nothing in a round: name what it releases")
        for release in (*self.releases, *self.once):
            if type(release.steps) is not int or release.steps > _MOST or not math.isfinite(release.noise_multiplier):
                raise PrivacyError(f"run {self.run!r} asks for {release}: steps must be a count, and noise finite")

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Schedule":
        """What an entry of a ledger holds."""
        releases, once = (tuple(Release(**each) for each in entry[name]) for name in ("releases", "once"))
        return cls(entry["run"], entry["server"], releases, entry["participations"], once)

    def facts(self) -> dict[str, Any]:
        """What an entry holds of it."""
        return asdict(self)


@dataclass
class Run:
    """What a run announced, and what it did. Costs are Rényi divergences of the ledger's order.

    rounds: those that began; with each the digest of the bytes that it released, or None. month: in which it was
    reserved, "2031-05".
    """

    schedule: Schedule
    month: str
    cost: float
    cost_once: float
    rounds: dict[int, str | None] = field(default_factory=dict)
    closed: bool = False

    @classmethod
    def of(cls, schedule: Schedule, time: float, order: float) -> "Run":
        """A run that is reserved at `time`, in seconds since 1970."""
        month = datetime.fromtimestamp(time, UTC).strftime("%Y-%m")
        return cls(schedule, month, divergence(schedule.releases, order), divergence(schedule.once, order))

    def participated(self) -> int:
        """How many rounds from 1 on began."""
        return len(self.rounds) - (0 in self.rounds)

    def counted(self) -> float:
        """What counts as spent: all that was announced, until the run is closed; then what began."""
        return self.begun() if self.closed else self._cost_of(self.schedule.participations, bool(self.schedule.once))

    def begun(self) -> float:
        """What the rounds that began cost."""
        return self._cost_of(self.participated(), 0 in self.rounds)

    def begun_with(self, round_number: int) -> float:
        """What they cost once that round began, too."""
        if round_number in self.rounds:
            return self.begun()
        return self._cost_of(self.participated() + (round_number > 0), round_number == 0 or 0 in self.rounds)

    def _cost_of(self, participations: int, once: bool) -> float:
        return participations * self.cost + (self.cost_once if once else 0.0)


class State:
    """All runs of a ledger, its limits, and the versions of its data set.

    Raises PrivacyError for entries that do not make a ledger.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self.runs: dict[str, Run] = {}
        self.versions: list[str] = []
        self.limits: Limits
        self.identity = self.data = ""
        for number, entry in enumerate(entries):
            try:
                _APPLY[entry["kind"]](self, entry)
            except (KeyError, TypeError, ValueError, AttributeError, PrivacyError) as error:
                raise PrivacyError(
                    f"entry {number + 1} of the ledger is not one that this version of fedlora writes"
                    f" ({str(entry)[:100]}): it was edited, or a newer version is needed"
                ) from error

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Counts an entry that was appended."""
        _APPLY[entry["kind"]](self, entry)

    def total(self, cost: Callable[[Run], float], *, month: str | None = None, without: str | None = None) -> float:
        """The sum of `cost` over all runs, or those of a month, but the one of the id `without`."""
        return math.fsum(cost(run) for name, run in self.runs.items() if month in (None, run.month) and name != without)

    def _opened(self, entry: Mapping[str, Any]) -> None:
        if self.identity:
            raise PrivacyError("a ledger is opened once")
        self.identity, self.data = str(entry["ledger"]), str(entry["data"])
        ceiling = Ceiling(float(entry["epsilon"]), float(entry["delta"]), float(entry["order"]))
        self.limits = Limits.of(ceiling, entry["run_epsilon"], entry["month_epsilon"])

    def _limited(self, entry: Mapping[str, Any]) -> None:
        ceiling = self.limits.total.at(float(entry["epsilon"]), "epsilon")
        self.limits = Limits.of(ceiling, entry["run_epsilon"], entry["month_epsilon"])

    def _version(self, entry: Mapping[str, Any]) -> None:
        self.versions.append(str(entry["fingerprint"]))

    def _reserved(self, entry: Mapping[str, Any]) -> None:
        run = Run.of(Schedule.of(entry), float(entry["time"]), self.limits.total.order)
        self.runs[run.schedule.run] = run

    def _begun(self, entry: Mapping[str, Any]) -> None:
        self.runs[entry["run"]].rounds[int(entry["round"])] = None

    def _released(self, entry: Mapping[str, Any]) -> None:
        self.runs[entry["run"]].rounds[int(entry["round"])] = str(entry["digest"])

    def _void(self, entry: Mapping[str, Any]) -> None:
        del self.runs[entry["run"]].rounds[int(entry["round"])]

    def _closed(self, entry: Mapping[str, Any]) -> None:
        self.runs[entry["run"]].closed = True


_APPLY: Mapping[str, Callable[[State, Mapping[str, Any]], None]] = {
    "opened": State._opened,
    "limits": State._limited,
    "version": State._version,
    "reserved": State._reserved,
    "begun": State._begun,
    "released": State._released,
    "void": State._void,
    "closed": State._closed,
}
