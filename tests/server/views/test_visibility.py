"""Who sees what of a run under central DP, and of others."""

import dataclasses
import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from fedlora.identity.registry import Registry
from fedlora.server.dashboard.people import Role
from fedlora.server.records import Outcome, RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.server.views import Views, visibility
from fedlora.server.views.model import Comparison, Matrix, Mine, RosterLine, RunRow, Series, Spread
from tests.server.views.making import SITES, committed, configured, promised, quiet_views, row

FEW, ALL = (Role.COLLABORATOR, Role.VIEWER), (Role.OPERATOR, Role.ADMIN)
QUORUM = "QuorumError: only 1 of 3 clients reported (client 1: south was away)"


def made(store: RunStore, privacy: str) -> RunInfo:
    run = store.create(configured(privacy=privacy), name="n")
    promised(run)
    lost = row(1, Outcome.LOST, "south was away")
    run = committed(store, run, [[row(0), lost], [row(0), row(2), lost]])
    return store.finish(run, RunStatus.FAILED, {"bytes_up": 30.0, "seconds": 9.0, "test_accuracy": 0.5}, QUORUM)


def written(value: Any) -> str:
    """As JSON, the way that the dashboard sends it."""
    return TypeAdapter(type(value)).dump_json(value).decode()


@pytest.mark.parametrize("privacy", ["none", "local", "central"])
@pytest.mark.parametrize("role", Role)
def test_rosters_are_the_operators_under_central_dp_and_never_a_collaborators(role: Role, privacy: str) -> None:
    expected = role >= Role.OPERATOR or (role is Role.VIEWER and privacy != "central")
    assert visibility.may_see_clients(role, privacy) is expected


@pytest.mark.parametrize("role", FEW)
def test_a_row_under_central_dp_tells_nothing_of_clients(store: RunStore, role: Role) -> None:
    found = quiet_views(store).run_row(made(store, "central").id)
    shown = visibility.shown_row(role, found)
    assert (shown.bytes_up, shown.bytes_down, shown.bytes_once) == (None, None, None)
    assert (shown.expected_seconds, shown.eta_seconds, shown.participation) == (None, None, "")
    assert not any(site in written(shown) for site in SITES)
    assert "of 3" not in written(shown)
    assert (shown.epsilon, shown.metric, shown.round) == (found.epsilon, found.metric, found.round)


@pytest.mark.parametrize("role", ALL)
def test_operators_see_the_whole_row(store: RunStore, role: Role) -> None:
    found = quiet_views(store).run_row(made(store, "central").id)
    assert visibility.shown_row(role, found) is found
    assert "south" in found.participation


def test_an_alarm_under_central_dp_is_shown_without_its_reason(store: RunStore) -> None:
    run = committed(store, store.create(configured(privacy="central"), name="n"), [[row(0)]])
    shown = visibility.shown_row(Role.VIEWER, quiet_views(store).run_row(run.id))
    assert shown.health == "stalled"
    assert shown.health_reason == "the reason is for operators: under central DP it may say who took part"


def test_columns(store: RunStore) -> None:
    series = quiet_views(store).series(made(store, "central").id)
    assert set(visibility.shown_series(Role.VIEWER, "central", series).columns) == {
        "round",
        "epsilon",
        "validation_accuracy",
        "validation_loss",
        "train_loss",
    }
    shown = visibility.shown_series(Role.VIEWER, "central", series)
    assert shown.columns.keys() == shown.units.keys() == shown.labels.keys()
    assert visibility.shown_series(Role.OPERATOR, "central", series) is series
    assert visibility.shown_series(Role.VIEWER, "local", series) is series


def test_a_comparison_hides_of_each_run_what_it_must(store: RunStore) -> None:
    central, plain = made(store, "central"), made(store, "none")
    found = quiet_views(store).compare([central.id, plain.id])
    shown = visibility.shown_comparison(Role.VIEWER, found)
    rows = {one.id: one for one in shown.rows}
    assert (rows[central.id].bytes_up, rows[plain.id].bytes_up) == (None, 50)
    assert "bytes_total" not in shown.series[central.id].columns
    assert "bytes_total" in shown.series[plain.id].columns
    figures = {group.runs[0]: set(group.figures) for group in shown.groups}
    assert figures == {central.id: {"test_accuracy"}, plain.id: {"bytes_up", "seconds", "test_accuracy"}}
    assert visibility.shown_comparison(Role.ADMIN, found) is found


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        ({"event": "round_started", "round": 1, "rounds": 5, "cohort": [1, 2]}, None),
        ({"event": "client_reported", "round": 1, "row": {"client": 1}}, None),
        ({"event": "client_refused", "round": 1, "row": {"client": 1}}, None),
        ({"event": "round_retried", "round": 1, "reason": "client 1: south"}, None),
        ({"event": "something_new", "round": 1}, None),
        (
            {"event": "round_committed", "round": 1, "rounds": 5, "metrics": {"a": 1}, "reported": 2, "seconds": 3.0},
            {"event": "round_committed", "round": 1, "rounds": 5, "metrics": {"a": 1}},
        ),
        (
            {"event": "run_failed", "round": 1, "rounds": 5, "error": "QuorumError", "reason": QUORUM, "seconds": 1},
            {"event": "run_failed", "round": 1, "rounds": 5, "error": "QuorumError"},
        ),
    ],
)
def test_lines_of_the_log(event: dict[str, Any], kept: dict[str, Any] | None) -> None:
    assert visibility.shown_event(Role.VIEWER, "central", event) == kept
    assert visibility.shown_event(Role.OPERATOR, "central", event) == event
    assert visibility.shown_event(Role.VIEWER, "local", event) == event
    assert visibility.shown_event(Role.COLLABORATOR, "central", event) is None


def test_checkpoints_without_their_times(store: RunStore) -> None:
    from fedlora.server.views.model import CheckpointRow

    found = [CheckpointRow(1, quiet_views(store).run_row(made(store, "central").id).last_commit, 5, 0.5)]
    (shown,) = visibility.shown_checkpoints(Role.VIEWER, "central", found)
    assert (shown.committed_at, shown.bytes) == (None, 5)
    assert visibility.shown_checkpoints(Role.OPERATOR, "central", found) == found


def test_clients_are_counted_over_the_runs_that_one_may_see(store: RunStore) -> None:
    registry = Registry(store.database)
    registry.invite("north")
    made(store, "central"), made(store, "none")
    views = quiet_views(store, registry=registry)
    assert [views.clients(role)[0].asked for role in (Role.VIEWER, Role.OPERATOR)] == [2, 4]


class TestMine:
    """A site sees itself and the global model, and nothing of others: not even how many there are."""

    @pytest.fixture(params=["none", "dp", "central"])
    def run(self, store: RunStore, request: pytest.FixtureRequest) -> RunInfo:
        store.create(configured(("other-1", "other-2")), name="another")
        run = store.create(configured(privacy=request.param), name="n")
        promised(run, 3.0, 2)
        rosters = [
            [row(0, bytes_up=101), row(1, Outcome.REJECTED, "norm 77", bytes_up=7777), row(2, bytes_up=9999)],
            [row(1, bytes_up=7777), row(2, Outcome.LOST, "secret of west")],
            [row(0, Outcome.DECLINED, "its own reason", bytes_up=0, bytes_down=33), row(1, samples=4242)],
        ]
        return committed(store, run, rosters)

    def test_its_own_part(self, store: RunStore, run: RunInfo) -> None:
        found = quiet_views(store).mine(run.id, "north")
        assert [(one.round, one.outcome, one.reason) for one in found.own] == [
            (1, "reported", ""),
            (3, "declined", "its own reason"),
        ]
        assert (found.bytes_up, found.bytes_down) == (101, 53)
        assert found.counts == {"reported": 1, "declined": 1}
        assert (found.run_name, found.round, found.rounds) == ("n", 3, 5)
        assert found.series.columns["validation_accuracy"] == [0.5, 0.51, 0.52, 0.53]

    def test_nothing_of_others(self, store: RunStore, run: RunInfo) -> None:
        text = written(quiet_views(store).mine(run.id, "north"))
        for secret in ("south", "west", "norm 77", "secret", "7777", "9999", "4242", "lost", "rejected", "other"):
            assert secret not in text, secret
        keys = {field.name for field in dataclasses.fields(Mine)}
        assert not keys & {"reported", "asked", "clients", "participation", "reason", "health_reason", "sites"}
        assert set(json.loads(text)["series"]["columns"]) == {"round", "validation_accuracy", "validation_loss"}

    def test_what_it_sees_does_not_depend_on_others(self, store: RunStore) -> None:
        """Another number of others, and other answers of theirs: the same view, but for the runs' ids and times."""
        views = []
        for sites, outcome in ((SITES, Outcome.REPORTED), (("north", "a", "b", "c", "d"), Outcome.LOST)):
            run = store.create(configured(sites), name="n")
            others = [
                row(number, outcome, "" if outcome is Outcome.REPORTED else "x") for number in range(1, len(sites))
            ]
            committed(store, run, [[row(0), *others]])
            found = json.loads(written(quiet_views(store).mine(run.id, "north")))
            views.append({key: value for key, value in found.items() if key != "run"})
        assert views[0] == views[1]

    def test_its_epsilon(self, store: RunStore, run: RunInfo) -> None:
        found = quiet_views(store).mine(run.id, "south")
        expected = {"none": None, "local": None, "central": None}  # 3 rounds: not worked out
        assert found.epsilon == expected[found.privacy]
        north = quiet_views(store).mine(run.id, "west")
        assert north.epsilon == {"none": None, "local": 3.0, "central": None}[north.privacy]  # 2 rounds by the roster
        assert bool(north.notes) is (north.privacy != "none")

    @pytest.mark.parametrize("site", ["other-1", "", "0", "North", "x" * 500])
    def test_a_run_that_is_not_the_sites(self, store: RunStore, run: RunInfo, site: str) -> None:
        from fedlora.errors import UnknownRunError

        with pytest.raises(UnknownRunError):
            quiet_views(store).mine(run.id, site)


HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m=cmd|' /C calc'!A0"


def test_hostile_names_pass_through_as_text(store: RunStore) -> None:
    """Nothing is interpreted here; whoever shows it escapes it."""
    run = store.create(configured((HOSTILE, "b", "c")), name=HOSTILE)
    run = committed(store, run, [[row(0, Outcome.DECLINED, HOSTILE, metrics={HOSTILE: 1.0})]])
    views: Views = quiet_views(store)
    for kind, value in (
        (RunRow, views.run_row(run.id)),
        (Matrix, views.matrix(run.id)),
        (Series, views.series(run.id)),
        (Spread, views.spread(run.id, HOSTILE)),
        (Comparison, views.compare([run.id])),
        (Mine, views.mine(run.id, HOSTILE)),
        (list[RosterLine], list(views.roster(run.id, 1))),
    ):
        codec: TypeAdapter[Any] = TypeAdapter(kind)
        assert json.loads(codec.dump_json(value)) == codec.dump_python(value, mode="json")
        codec.validate_json(codec.dump_json(value))
    assert views.roster(run.id, 1)[0].client == HOSTILE
    (line,) = views.csv(views.compare([run.id])).splitlines()[1:2]
    assert line.count(HOSTILE.replace('"', '""')) == 1


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum", "\tx"])
def test_a_spreadsheet_does_not_take_a_name_for_a_formula(store: RunStore, name: str) -> None:
    run = committed(store, store.create(configured(), name=name), [[row(0)]])
    views = quiet_views(store)
    assert f",'{name}," in views.csv(views.compare([run.id])).replace('"', "")
