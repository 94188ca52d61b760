"""ε after so many rounds: what a run's `privacy.json` says, and what is worked out meanwhile. Nothing is interpolated.

The run's own accounting needs torch and seconds: it is done in a process of its own (see `accountant`), and what it
finds is kept for as long as this process lives.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from fedlora.server.records import RunInfo
from fedlora.server.views.facts import config_of

log = logging.getLogger(__name__)

FILE = "privacy.json"
"""`fedlora.privacy.account.FILE`, whose module loads torch; a test holds the two together."""

MOST = 32
"""Numbers of rounds for which ε is worked out: all of a short run, evenly spread ones of a long one."""


@dataclass(frozen=True)
class Promise:
    """What a run's privacy.json says. total: ε over the run, at most; counts: after so many rounds; sites: client → ε
    in the end; headline: one sentence. total is None where nothing is promised.
    """

    headline: str = ""
    total: float | None = None
    delta: float | None = None
    counts: Mapping[int, float] = field(default_factory=dict)
    largest: float | None = None


def promise(run: RunInfo) -> Promise:
    """Of `run`; an empty one where it has not begun, or the file cannot be read."""
    try:
        return _promise(json.loads((run.folder / FILE).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Promise()


def _promise(found: Mapping[str, Any]) -> Promise:
    said, spent = found["promise"], found["spent"] or {}
    figures = said["figures"] if said["holds"] else None
    if figures is None:
        return Promise(str(said["headline"]))
    counts = {int(figures["participations"]): float(figures["epsilon"])}
    if not _spends_before(figures.get("releases", ())):
        counts[0] = 0.0
    counts |= {int(site["rounds"]): float(site["epsilon"]) for site in spent.get("sites", {}).values()}
    largest = spent.get("largest_epsilon")
    return Promise(str(said["headline"]), float(figures["epsilon"]), float(figures["delta"]), counts, largest)


def _spends_before(releases: Sequence[Sequence[float]]) -> bool:
    """Whether clients spend before round 1: a noised sketch has the noise and the rate of the training steps."""
    kinds = [(noise, rate) for noise, rate, _ in releases]
    return len(set(kinds)) < len(kinds)


Work = Callable[[str, Sequence[int]], Iterator[tuple[int, float]]]


class Epsilons:
    """What is known of each configuration: rounds → ε. One is worked out at a time, in the background.

    work: (configuration as JSON, numbers of rounds) → (rounds, ε), one by one; None: nothing is worked out.
    """

    def __init__(self, work: Work | None) -> None:
        self._work = work
        self._known: dict[str, dict[int, float]] = {}
        self._wanted: SimpleQueue[tuple[str, str, tuple[int, ...]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def known(self, run: RunInfo, promised: Promise) -> Mapping[int, float]:
        """Rounds → ε, as far as it is known now."""
        with self._lock:
            return {**self._known.get(_key(run), {}), **promised.counts}

    def want(self, run: RunInfo, promised: Promise, last: int) -> None:
        """Has ε worked out, if that was not asked for before. last: a number of rounds of which it is wanted first."""
        key = _key(run)
        if promised.total is None or self._work is None:
            return
        with self._lock:
            if key not in self._known:
                self._known[key] = {}
                self._wanted.put((key, run.config, tuple(dict.fromkeys((last, *spread_out(run.rounds))))))
            if self._thread is None:
                self._thread = threading.Thread(target=self._find, name="epsilon", daemon=True)
                self._thread.start()

    def _find(self) -> None:
        while True:
            key, config, rounds = self._wanted.get()
            try:
                for number, found in self._work(config, rounds) if self._work else ():
                    with self._lock:
                        self._known[key][number] = found
            except (OSError, ValueError) as error:
                log.warning("the ε of a run's single rounds cannot be shown: %s", error)


def _key(run: RunInfo) -> str:
    """Runs that differ in nothing which costs privacy share what is worked out: repetitions of one configuration."""
    config = config_of(run.config)
    return json.dumps([config.get(name) for name in _PARTS], sort_keys=True)


_PARTS = ("privacy", "federation", "train", "strategy", "eval")


def spread_out(rounds: int, most: int = MOST) -> Sequence[int]:
    """Numbers from 0 to `rounds`, evenly, `most` + 1 at most."""
    step = max(1, -(-rounds // most))
    return sorted({*range(0, rounds, step), rounds})


def at_most(known: Mapping[int, float], rounds: int) -> tuple[float | None, bool]:
    """ε after `rounds` rounds, and whether it is only a bound: that of the next larger number which is known."""
    if rounds in known:
        return known[rounds], False
    larger = [number for number in known if number > rounds]
    return (known[min(larger)], True) if larger else (None, False)
