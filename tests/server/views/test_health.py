"""How a run fares, with a clock that tests move."""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedlora.server.queue import STOP
from fedlora.server.records import Outcome, RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.server.views import Link, Views
from fedlora.server.views.health import Signs, Whereabouts, judge, slow_after, stalled_after
from tests.server.views.making import (
    START,
    Clock,
    Talk,
    There,
    committed,
    configured,
    log_lines,
    promised,
    quiet_views,
    row,
)


@contextmanager
def held(store: RunStore, run: RunInfo, since: float = 0.0) -> Iterator[None]:
    """The run's lock, taken `since` seconds after START."""
    with store.lock(run):
        moment = Clock()
        moment.after(since)
        note = {"pid": 1, "host": socket.gethostname(), "command": "c", "since": moment().isoformat()}
        (run.folder / ".holder.json").write_text(json.dumps(note))
        yield


def there(connected: bool = True, seconds: float = 0.0, **state: Any) -> There:
    """A client that came, or was last there, `seconds` ago."""
    return There(object() if connected else None, time.monotonic() - seconds, Talk(**state))


def linked(store: RunStore, clock: Clock, presences: Mapping[str, There], waiting: Any = lambda run: None) -> Views:
    """Views of a server with these clients."""
    return quiet_views(store, clock, link=Link(lambda: presences, waiting))


def test_from_ok_over_slow_to_stalled_and_back(store: RunStore) -> None:
    """Rounds took 20 s: amber after 40, red after 100."""
    run = committed(store, store.create(configured(), name="n"), [[row(0)]] * 2, seconds=20.0)
    clock = Clock()
    views = linked(store, clock, {"north": there(), "south": there(), "west": there()})
    clock.after(40)  # the time of the last commit
    with held(store, run):
        seen = {}
        for seconds in (0, 40, 41, 100, 101):
            clock.moment = views.run_row(run.id).last_commit
            clock.after(seconds)
            seen[seconds] = views.run_row(run.id).health
        assert seen == {0: "ok", 40: "ok", 41: "slow", 100: "slow", 101: "stalled"}
        assert views.run_row(run.id).health_reason.startswith("Round 3 has taken 101 s, about 20 s is usual: ")
        clock.moment = START
        committed_round(store, run, 3, clock)
        row_now = views.run_row(run.id)
        assert (row_now.health, row_now.health_reason, row_now.round) == ("ok", "", 3)


def committed_round(store: RunStore, run: RunInfo, number: int, clock: Clock) -> None:
    from fedlora.server.records import RoundRecord

    store.commit_round(run, RoundRecord(number, {}, (), seconds=20.0, committed_at=clock()))


def test_quiet_counts_from_when_a_process_took_the_run_up(store: RunStore) -> None:
    """A run that was resumed after a night is not stalled."""
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    clock = Clock()
    clock.after(36_000)
    with held(store, run, since=35_990):
        assert linked(store, clock, {"north": there()}).run_row(run.id).health == "ok"
    with held(store, run, since=0):
        assert linked(store, clock, {"north": there()}).run_row(run.id).health == "stalled"


def test_who_is_waited_for_and_since_when_they_are_away(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    log_lines(run.folder, {"event": "round_started", "round": 2, "rounds": 5, "cohort": [0, 1, 2]})
    clock = Clock()
    clock.after(500)
    north, south, west = there(work="w"), there(connected=False, seconds=240), there(paused=True, reason="backup")
    views = linked(store, clock, {"north": north, "south": south, "west": west})
    with held(store, run):
        reason = views.run_row(run.id).health_reason
    assert reason.endswith(
        "waiting for south, away since 2026-03-01 12:04:20 UTC (4 min 0 s); north, connected and at work;"
        " west, paused by its owner (backup)."
    )


def test_what_the_link_knows_wins_over_the_log(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    log_lines(run.folder, {"event": "round_started", "round": 2, "rounds": 5, "cohort": [0, 1, 2]})
    clock = Clock()
    clock.after(500)
    with held(store, run):
        one = linked(
            store, clock, {"north": there(), "west": there()}, lambda run_id: ["west"] if run_id == run.id else []
        )
        nobody = linked(store, clock, {"north": there()}, lambda run_id: [])
        assert one.run_row(run.id).health_reason.endswith("waiting for west, connected and idle.")
        assert "no client is being waited for; the server aggregates" in nobody.run_row(run.id).health_reason


def test_those_who_have_answered_are_not_waited_for(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    told = [{"event": "client_reported", "round": 2, "row": {"client": 0}}]
    told += [{"event": "client_refused", "round": 2, "row": {"client": 2, "outcome": "declined", "reason": "no"}}]
    log_lines(run.folder, {"event": "round_started", "round": 2, "rounds": 5, "cohort": [0, 1, 2]}, *told)
    clock = Clock()
    clock.after(500)
    with held(store, run):
        reason = linked(store, clock, {"south": there()}).run_row(run.id).health_reason
    assert reason.endswith("waiting for south, connected and idle.")


def test_nobody_is_connected(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    clock = Clock()
    clock.after(500)
    with held(store, run):
        found = linked(store, clock, {"north": there(connected=False, seconds=5)}).run_row(run.id)
    assert found.health == "stalled"
    assert "no client is connected (north, away since" in found.health_reason
    assert "south, not connected since this server started" in found.health_reason


def test_a_round_that_is_tried_again_says_why(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    events = [{"event": "round_started", "round": 2, "rounds": 5, "cohort": [0]}]
    events += [{"event": "round_retried", "round": 2, "attempt": 1, "wait": 30, "reason": "1 of 2 reported"}]
    log_lines(run.folder, *events)
    clock = Clock()
    clock.after(500)
    with held(store, run):
        assert "it is tried again, because 1 of 2 reported." in linked(store, clock, {}).run_row(run.id).health_reason


def test_before_the_first_round(store: RunStore) -> None:
    run = store.create(configured(), name="n")
    clock = Clock()
    with held(store, run):
        present = linked(store, clock, {"north": there()})
        clock.after(3600)
        found = present.run_row(run.id)
        assert (found.health, found.expected_seconds, found.eta_seconds) == ("waiting", None, None)
        assert found.health_reason.startswith("Waiting for the first round.")
        absent = linked(store, clock, {})
        seen = []
        for seconds in (60, 61, 121):
            clock.moment = START
            clock.after(seconds)
            seen.append(absent.run_row(run.id).health)
        assert seen == ["waiting", "slow", "stalled"]
        assert "no client is connected" in absent.run_row(run.id).health_reason


def test_a_simulated_run_names_no_clients(store: RunStore) -> None:
    run = committed(store, store.create(configured(()), name="n"), [[row(0)]])
    clock = Clock()
    clock.after(500)
    with held(store, run):
        assert "its clients are simulated by the process" in quiet_views(store, clock).run_row(run.id).health_reason


def test_a_dead_process_is_red(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    found = quiet_views(store).run_row(run.id)
    assert (found.status, found.health) == ("interrupted", "stalled")
    assert "died after round 1" in found.health_reason


def test_a_run_that_the_daemon_has_just_taken_is_not_dead(store: RunStore) -> None:
    run = store.create(configured(), name="n")
    found = quiet_views(store, link=Link(driven=lambda: run.id)).run_row(run.id)
    assert (found.status, found.health) == ("running", "waiting")


def test_a_run_that_stops(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    (run.folder / STOP).touch()
    with held(store, run):
        found = quiet_views(store).run_row(run.id)
    assert (found.status, found.stop_requested) == ("stopping", True)


def test_the_queue_says_how_many_are_before(store: RunStore) -> None:
    first, second = (store.create(configured(), name=name, status=RunStatus.QUEUED) for name in "ab")
    views = quiet_views(store)
    assert views.run_row(second.id).health_reason == "Waiting for its turn: 1 queued before it."
    reasons = {found.id: (found.status, found.health, found.health_reason) for found in views.runs()}
    assert reasons[first.id] == ("queued", "waiting", "Waiting for its turn.")
    assert reasons[second.id][2] == "Waiting for its turn: 1 queued before it."


@pytest.mark.parametrize("status", [RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED])
def test_what_has_ended_has_no_health(store: RunStore, status: RunStatus) -> None:
    run = store.finish(committed(store, store.create(configured(), name="n"), [[row(0)]]), status, reason="why")
    found = quiet_views(store).run_row(run.id)
    assert (found.status, found.health, found.health_reason, found.reason) == (str(status), "", "", "why")


def test_expected_is_the_median_of_recent_rounds_and_gives_what_is_left(store: RunStore) -> None:
    run = committed(store, store.create(configured(rounds=9), name="n"), [[row(0)]] * 3, seconds=10.0)
    with held(store, run):
        found = quiet_views(store).run_row(run.id)
    assert (found.expected_seconds, found.eta_seconds) == (10.0, 60.0)


def test_the_deadline_is_expected_of_the_first_round(store: RunStore) -> None:
    run = store.create(configured(timeout=300.0), name="n")
    with held(store, run):
        assert quiet_views(store).run_row(run.id).expected_seconds == 300.0


def test_thresholds() -> None:
    assert (slow_after(1), slow_after(100)) == (30, 200)
    assert (stalled_after(1, None), stalled_after(100, None), stalled_after(1, 600.0)) == (60, 500, 630)
    assert all(stalled_after(seconds, None) > slow_after(seconds) for seconds in (0, 1, 15, 30, 1e6))


def test_a_sentence_names_five_at_most() -> None:
    sites = [Whereabouts(f"site-{number}", True) for number in range(200)]
    _, reason = judge(Signs(500, 10, None, 2, sites, sites), START)
    assert reason.count("site-") == 5
    assert reason.endswith("and 195 more.")


def test_metric_epsilon_and_bytes_of_a_row(store: RunStore) -> None:
    run = store.create(configured(privacy="dp"), name="n")
    promised(run, 3.0, 5, {0: {"rounds": 2, "epsilon": 1.25}, 1: {"rounds": 1, "epsilon": 1.0}})
    run = committed(store, run, [[row(0), row(1)], [row(0)]])
    found = quiet_views(store).run_row(run.id)
    assert (found.metric_name, found.metric) == ("validation_accuracy", 0.52)
    assert (found.epsilon, found.epsilon_at_most, found.epsilon_total, found.delta) == (1.25, False, 3.0, 1e-5)
    assert (found.bytes_up, found.bytes_down, found.bytes_once) == (30, 60, 0)
    store.finish(run, RunStatus.FINISHED, {"test_accuracy": 0.9})
    ended = quiet_views(store).run_row(run.id)
    assert (ended.test_metric, ended.epsilon) == (0.9, 1.25)


def test_the_last_known_metric_is_found_where_few_rounds_are_measured(store: RunStore) -> None:
    from fedlora.server.records import RoundRecord
    from tests.server.samples import config

    run = store.create(config(eval={"every": 20}, federation={"clients": 3, "cohort": 2, "rounds": 99}), name="n")
    for number in range(39):
        figures = {"validation_accuracy": number / 100} if number % 20 == 0 else {"train_loss": 1.0}
        store.commit_round(run, RoundRecord(number, figures, ()))
    found = quiet_views(store).run_row(run.id)
    assert (found.metric_name, found.metric) == ("validation_accuracy", 0.2)


def test_sites_that_are_not_in_the_model_are_named(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0), row(1, Outcome.LOST, "x")]])
    assert quiet_views(store).run_row(run.id).participation == (
        "Trained without south: asked, but no update of theirs ever counted."
    )


def test_rows_of_ended_runs_are_kept_until_something_changes(store: RunStore) -> None:
    run = committed(store, store.create(configured(), name="n"), [[row(0)]])
    store.finish(run, RunStatus.STOPPED)
    views = quiet_views(store)
    (first,), (second,) = views.runs(), views.runs()
    assert first is second
    store.reopen(run)
    assert views.runs()[0].status == "interrupted"
    store.finish(run, RunStatus.FAILED, reason="new")
    assert (views.runs()[0].status, views.runs()[0].reason) == ("failed", "new")


def test_a_broken_configuration_or_promise_hides_nothing_else(store: RunStore) -> None:
    run = committed(store, store.create(configured(privacy="dp"), name="n"), [[row(0)]])
    (Path(run.folder) / "privacy.json").write_text("{")
    found = quiet_views(store).run_row(run.id)
    assert (found.epsilon, found.epsilon_total, found.round) == (None, None, 1)
