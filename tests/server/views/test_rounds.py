"""Columns, matrix, spread, rosters and settings; all of it with both databases."""

import pytest

from fedlora.errors import UnknownRunError
from fedlora.server.records import Outcome, RoundRecord, RunStatus
from fedlora.server.scrub import Erasures, note
from fedlora.server.store import RunStore
from fedlora.server.views.rounds import LEGEND
from tests.postgres import BOTH
from tests.server.views.making import SITES, committed, configured, promised, quiet_views, row

OUTCOMES = {"r": "reported", "x": "rejected", "d": "declined", "f": "failed", "l": "lost", "t": "late"}

pytestmark = BOTH


def test_columns_of_a_run(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0), row(1)], [row(2, Outcome.LOST, "gone")]])
    series = quiet_views(store).series(run.id)
    assert series.columns["round"] == [0, 1, 2]
    assert series.columns["seconds"] == [10.0, 20.0, 30.0]
    assert series.columns["bytes_total"] == [0, 60, 90]
    assert series.columns["bytes_up"] == [0, 20, 10]
    assert (series.columns["reported"], series.columns["asked"]) == ([0, 2, 0], [0, 2, 1])
    assert series.columns["validation_accuracy"] == [0.5, 0.51, 0.52]
    assert "epsilon" not in series.columns
    assert series.columns.keys() == series.units.keys() == series.labels.keys()
    assert (series.units["seconds"], series.units["train_loss"]) == ("s", "nats")
    assert series.labels["validation_accuracy"] == "accuracy on the validation split"


def test_numbers_that_json_has_not_are_none(store: RunStore) -> None:
    run = store.create(configured(), name="n")
    store.commit_round(run, RoundRecord(0, {"train_loss": float("nan")}, ()))
    store.commit_round(run, RoundRecord(1, {"other": 1.0}, [row(0, metrics={"loss": float("inf")})]))
    views = quiet_views(store)
    columns = views.series(run.id).columns
    assert (columns["train_loss"], columns["other"]) == ([None, None], [None, 1.0])
    assert views.roster(run.id, 1)[0].metrics == {"loss": None}
    assert views.spread(run.id, "loss").round == []


def test_names_of_sites_and_the_legend(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0), row(2, Outcome.DECLINED, "no")]])
    views = quiet_views(store)
    matrix = views.matrix(run.id)
    assert (matrix.clients, matrix.cells) == (["north", "west"], ["r", "d"])
    assert matrix.legend == {**OUTCOMES, ".": "not asked"} == LEGEND
    lines = views.roster(run.id, 1)
    assert [(line.client, line.outcome, line.reason) for line in lines] == [
        ("north", "reported", ""),
        ("west", "declined", "no"),
    ]
    with pytest.raises(UnknownRunError, match="has no committed round 7"):
        views.roster(run.id, 7)


def test_round_0_is_in_the_matrix_where_clients_were_asked_for_sketches(store: RunStore) -> None:
    run = store.create(configured(), name="n")
    store.commit_round(run, RoundRecord(0, {}, [row(1)]))
    store.commit_round(run, RoundRecord(1, {}, [row(0)]))
    matrix = quiet_views(store).matrix(run.id)
    assert (matrix.rounds, matrix.clients, matrix.cells) == ((0, 1), ["north", "south"], [".r", "r."])


def test_rounds_that_were_forgotten_and_made_again(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)], [row(0)]])
    views = quiet_views(store)
    assert views.matrix(run.id).cells == ["rr"]
    store.discard_after(run, 1)
    assert views.matrix(run.id).cells == ["r"]
    store.commit_round(run, RoundRecord(2, {}, [row(0, Outcome.FAILED, "x")]))
    assert views.matrix(run.id).cells == ["rf"]
    store.discard_after(run, 1)
    store.commit_round(run, RoundRecord(2, {}, [row(0, Outcome.LATE, "x")]))
    assert views.matrix(run.id).cells == ["rt"]


def test_what_is_erased_is_not_kept(store: RunStore) -> None:
    rosters = [[row(0, metrics={"loss": 1.0}), row(1, metrics={"loss": 2.0})]]
    run = committed(store, store.create(configured(), name="n"), rosters)
    run = store.finish(run, RunStatus.FINISHED)
    views = quiet_views(store)
    assert views.spread(run.id, "loss").n == [2]
    erased = Erasures().with_client(0, None)
    note(run.folder, erased)
    store.blank_roster({run.id: erased})
    assert views.spread(run.id, "loss").n == [1]


@pytest.mark.parametrize("name", ["a.b", "a b/c:d-e", "holdout_accuracy"])
def test_spread_of_names_that_databases_write_differently(store: RunStore, name: str) -> None:
    rosters = [[row(0, metrics={name: 1.0}), row(1, metrics={name: 3.0})]]
    run = committed(store, store.create(configured(), name="n"), rosters)
    views = quiet_views(store)
    assert views.roster_metrics(run.id) == [name]
    found = views.spread(run.id, name)
    assert (found.round, found.min, found.median, found.max) == ([1], [1.0], [2.0], [3.0])


@pytest.mark.parametrize("name", ['x"]) --', "'; DROP TABLE runs", "a\\b", "", "<script>", "é", "$", "x" * 300])
def test_metrics_with_hostile_names_are_not_offered_and_give_nothing(store: RunStore, name: str) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0, metrics={name: 1.0, "loss": 2.0})]])
    views = quiet_views(store)
    assert views.roster_metrics(run.id) == ["loss"]
    assert views.spread(run.id, name).round == []


@pytest.mark.parametrize("name", ["round", "epsilon", "reported"])
def test_a_metric_cannot_pass_for_a_column_of_the_server(store: RunStore, name: str) -> None:
    run = store.create(configured(), name="n")
    store.commit_round(run, RoundRecord(0, {name: 99.0}, ()))
    assert 99.0 not in quiet_views(store).series(run.id).columns.get(name, [])


def test_epsilon_of_local_dp_counts_the_busiest_client(store: RunStore) -> None:
    """The rounds that a client did not decline; what is not known of them stays empty."""
    run = store.create(configured(privacy="dp"), name="n")
    declined = row(0, Outcome.DECLINED, "no")
    promised(run, 3.0, 3)
    run = committed(store, run, [[row(0)], [declined], [row(0), row(1)], [row(0, Outcome.LOST, "x")]])
    assert quiet_views(store).series(run.id).columns["epsilon"] == [0.0, None, None, None, 3.0]


def test_epsilon_of_central_dp_counts_rounds(store: RunStore) -> None:
    run = store.create(configured(privacy="central"), name="n")
    promised(run, 3.0, 2)
    run = committed(store, run, [[], [row(0)]])
    assert quiet_views(store).series(run.id).columns["epsilon"] == [0.0, None, 3.0]


def test_settings_and_how_two_runs_differ(store: RunStore) -> None:
    one = store.create(configured(), name="n")
    other = store.create(configured(rounds=9), name="n")
    views = quiet_views(store)
    assert views.config(one.id)["federation.sites"] == list(SITES)
    (difference,) = views.config_difference(one.id, other.id)
    assert (difference.key, difference.here, difference.there) == ("federation.rounds", 5, 9)
    assert views.config_difference(one.id, one.id) == []


def test_an_unknown_run(store: RunStore) -> None:
    views = quiet_views(store)
    for ask in (views.series, views.matrix, views.run_row, views.config, views.checkpoints, views.roster_metrics):
        with pytest.raises(UnknownRunError):
            ask("../../etc/passwd")
