"""The numbers of rounds: which is the main one, and the unit and the words of each."""

import math
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from fedlora.words import spoken

UNITS: Mapping[str, str] = {
    "seconds": "s",
    "virtual_seconds": "s",
    "committed_at": "s since 1970 (UTC)",
    "bytes_up": "bytes",
    "bytes_down": "bytes",
    "bytes_once": "bytes",
    "bytes_total": "bytes",
    "reported": "clients",
    "asked": "clients",
    "round": "round",
    "clients_units": "units",
}
LABELS: Mapping[str, str] = {
    "round": "round",
    "seconds": "training time so far",
    "virtual_seconds": "virtual time so far",
    "committed_at": "time of the commit",
    "bytes_up": "bytes up in the round",
    "bytes_down": "bytes down in the round",
    "bytes_once": "bytes sent once",
    "bytes_total": "bytes sent so far",
    "reported": "clients that counted",
    "asked": "clients asked",
    "epsilon": "privacy spent so far (ε)",
    "train_loss": "loss of local training",
    "aggregation_error": "aggregation error (relative)",
    "aggregation_error_estimated": "aggregation error is an estimate (1: yes)",
    "clip_bound": "clipping bound C of the next round",
    "noise_std": "standard deviation of the noise",
    "unclipped_fraction": "part of the updates below C",
}
"""Words for an axis, of what is not only its name."""

_PREFIXES = ("validation_", "clients_")
_FIRST = ("accuracy", "token_accuracy")


def unit(name: str) -> str:
    """Of a column or a client's metric; "" for a plain number."""
    return UNITS.get(name, "nats" if name.endswith("loss") else "")


@lru_cache(maxsize=2048)
def label(name: str) -> str:
    """Words for an axis."""
    if name in LABELS:
        return LABELS[name]
    for prefix, where in (("validation_", "on the validation split"), ("clients_", "on the clients' held-out rows")):
        if name.startswith(prefix):
            return f"{spoken(name.removeprefix(prefix))} {where}"
    return spoken(name)


def main_metric(names: Collection[str], expected: str = "accuracy") -> str:
    """The main one of a run's round metrics, e.g. "validation_accuracy"; of the loss if there is nothing else.

    expected: the task's figure, for a run that has measured nothing yet.
    """
    for prefix in _PREFIXES:
        found = [name for name in names if name.startswith(prefix)]
        preferred = [f"{prefix}{word}" for word in _FIRST if f"{prefix}{word}" in found]
        other = [name for name in found if not name.endswith("loss") and name != "clients_units"]
        if best := [*preferred, *other, *found]:
            return best[0]
    return f"validation_{expected}"


def test_name(metric: str) -> str:
    """The same figure on the test split."""
    for prefix in _PREFIXES:
        metric = metric.removeprefix(prefix)
    return f"test_{metric}"


def finite(value: float | None) -> float | None:
    """`value` for JSON: None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def finite_all(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Each of them."""
    return {name: finite(float(value)) for name, value in figures.items()}


def quartiles(values: Iterable[float]) -> tuple[float, float, float, float, float]:
    """Least, lower quartile, median, upper quartile, largest of one or more values, interpolated linearly."""
    ordered = sorted(values)
    last = len(ordered) - 1

    def at(part: float) -> float:
        place = part * last
        low = int(place)
        high = min(low + 1, last)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return ordered[0], at(0.25), at(0.5), at(0.75), ordered[-1]
