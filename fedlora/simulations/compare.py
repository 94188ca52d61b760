"""Runs beside each other: repeated seeds of one configuration become a mean and a standard deviation.

Two results are called a tie where their means differ by less than two standard deviations.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.config.flat import flat
from fedlora.errors import StoreError
from fedlora.server.records import RunHistory, RunInfo

REPETITION_KEYS = ("seed", "name", "output", "store")
"""What may differ between repetitions of one configuration."""
_TIE_SDS = 2.0


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n − 1) of `n` values; `sd` is None for one value, which has none."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """The summary of one or more values. Raises ValueError if there are none."""
        if not values:
            raise ValueError("there are no values to summarise: give at least one")
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Group:
    """Runs whose configurations are equal but for `REPETITION_KEYS`, by seed.

    label: the settings in which this group differs from the others, e.g. "fed_sb, adapter.r=64".
    """

    label: str
    runs: Sequence[RunHistory]

    def summary(self, key: str) -> Summary | None:
        """Of the runs' final figure `key`; None if no run has it."""
        return self.over([run.run.summary[key] for run in self.runs if key in run.run.summary])

    @staticmethod
    def over(values: Iterable[float]) -> Summary | None:
        """The summary of the finite ones among `values`, if there are any."""
        finite = [value for value in values if math.isfinite(value)]
        return Summary.of(finite) if finite else None


def tie(a: Summary, b: Summary) -> bool | None:
    """Whether the means differ by less than two standard deviations; None if neither side has one.

    The standard deviation is the pooled one of both sides, √(((n_a−1)·s_a² + (n_b−1)·s_b²) / (n_a+n_b−2)): a side with
    a single run adds nothing to it. Equal means are a tie, also where both deviations are 0.
    """
    known = [(side.n - 1, side.sd) for side in (a, b) if side.sd is not None]
    if not known:
        return None
    pooled = math.sqrt(sum(freedom * sd**2 for freedom, sd in known) / sum(freedom for freedom, _ in known))
    return a.mean == b.mean or abs(a.mean - b.mean) < _TIE_SDS * pooled


def group_runs(histories: Sequence[RunHistory]) -> list[Group]:
    """The runs, grouped by configuration, in the order in which each configuration first comes.

    Raises StoreError if a run's configuration is no JSON.
    """
    grouped: dict[str, list[RunHistory]] = {}
    for history in histories:
        key = json.dumps(flat(_essential(history.run)), sort_keys=True)
        grouped.setdefault(key, []).append(history)
    labels = _labels([json.loads(key) for key in grouped])
    return [
        Group(label, sorted(runs, key=lambda history: history.run.seed))
        for label, runs in zip(labels, grouped.values(), strict=True)
    ]


def mean_curve(
    curves: Sequence[tuple[Mapping[int, float], Mapping[int, float]]],
) -> tuple[list[float], list[Summary]]:
    """Repeated curves as one: at each round that all of them have, the mean of the x values and the summary of the y's.

    curves: for each repetition, round → x and round → y (rounds without a value are left out of the mapping).
    """
    if not curves:
        return [], []
    shared = set.intersection(*({r for r in x if r in y and math.isfinite(y[r])} for x, y in curves))
    rounds = sorted(shared)
    xs = [statistics.fmean([x[r] for x, _ in curves]) for r in rounds]
    return xs, [Summary.of([y[r] for _, y in curves]) for r in rounds]


def privacy_together(histories: Iterable[RunHistory]) -> str | None:
    """A sentence on what all of the runs spend together; None if none of them is private."""
    from fedlora.privacy.account import read_account  # here: they load torch
    from fedlora.privacy.together import spent_together

    accounts = (read_account(history.run.folder) for history in histories)
    return spent_together(account for account in accounts if account is not None)


def _essential(run: RunInfo) -> dict[str, Any]:
    try:
        config = json.loads(run.config)
    except ValueError as error:
        raise StoreError(f"the configuration of run {run.id} in the store is no JSON: {error}") from error
    return {key: value for key, value in config.items() if key not in REPETITION_KEYS}


def _labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each configuration's differences from the others; the strategy's name comes first, and always."""
    keys = dict.fromkeys(key for config in configs for key in config)
    varying = [k for k in keys if len({json.dumps(config.get(k)) for config in configs}) > 1 and k != "strategy.name"]
    return [
        ", ".join(
            [str(config.get("strategy.name", "run")), *(f"{k}={_word(config[k])}" for k in varying if k in config)]
        )
        for config in configs
    ]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
