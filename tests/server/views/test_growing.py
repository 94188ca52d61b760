"""What is kept of a run and carried on by each round, against a reading of every roster."""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fedlora.server.records import Outcome, RosterRow, RoundRecord
from fedlora.server.store import RunStore
from fedlora.server.views.model import Matrix, Spread
from tests.server.views.making import committed, configured, quiet_views, row

OUTCOMES = {"r": "reported", "x": "rejected", "d": "declined", "f": "failed", "l": "lost", "t": "late"}
Rosters = Sequence[Sequence[RosterRow]]


@some.composite
def rosters(draw: some.DrawFn) -> Rosters:
    """Rosters of up to 6 rounds over up to 5 clients."""
    found = []
    for _ in range(draw(some.integers(1, 6))):
        clients = draw(some.lists(some.integers(0, 4), unique=True))
        value = some.one_of(some.none(), some.floats(allow_nan=True))
        found.append(
            [
                row(client, draw(some.sampled_from(Outcome)), metrics={} if loss is None else {"loss": loss})
                for client in clients
                for loss in [draw(value)]
            ]
        )
    return found


@given(found=rosters(), part=some.integers(0, 6))
@settings(max_examples=30)
def test_what_is_kept_and_carried_on_is_what_the_rosters_say(found: Rosters, part: int) -> None:
    """Half of the rounds are looked at before the others are committed."""
    with TemporaryDirectory() as folder, RunStore.open(Path(folder)) as store:
        run = store.create(configured((), rounds=10), name="n")
        views = quiet_views(store)
        committed(store, run, found[:part])
        for look in (views.matrix, views.series, lambda run_id: views.spread(run_id, "loss")):
            look(run.id)
        for number, roster in enumerate(found[part:], start=min(part, len(found)) + 1):
            store.commit_round(run, RoundRecord(number, {}, roster))
        check_matrix(views.matrix(run.id), found)
        columns = views.series(run.id).columns
        assert columns["reported"] == [0, *(sum(one.outcome is Outcome.REPORTED for one in each) for each in found)]
        assert columns["asked"] == [0, *map(len, found)]
        check_spread(views.spread(run.id, "loss"), found)


def check_matrix(matrix: Matrix, found: Rosters) -> None:
    clients = sorted({one.client for roster in found for one in roster})
    assert matrix.clients == [str(client) for client in clients]
    assert list(matrix.rounds) == list(range(1, len(found) + 1))
    for client, line, counts in zip(matrix.numbers, matrix.cells, matrix.counts, strict=True):
        told = {n: one.outcome for n, roster in enumerate(found) for one in roster if one.client == client}
        assert [OUTCOMES.get(letter) for letter in line] == [told.get(n) for n in range(len(found))]
        assert {OUTCOMES[letter]: n for letter, n in counts.items()} == dict(Counter(map(str, told.values())))


def check_spread(spread: Spread, found: Rosters) -> None:
    by_round = {
        number: sorted(
            one.metrics["loss"]
            for one in roster
            if one.outcome is Outcome.REPORTED and abs(one.metrics.get("loss", float("nan"))) < float("inf")
        )
        for number, roster in enumerate(found, start=1)
    }
    told = {number: values for number, values in by_round.items() if values}
    assert spread.round == list(told)
    assert spread.n == [len(values) for values in told.values()]
    assert spread.min == [values[0] for values in told.values()]
    assert spread.max == [values[-1] for values in told.values()]
    for low, middle, high, values in zip(spread.q1, spread.median, spread.q3, told.values(), strict=True):
        if len(values) > 1 and max(map(abs, values)) < 1e300:
            assert [low, middle, high] == pytest.approx(statistics.quantiles(values, n=4, method="inclusive"))
