"""The event log, read from its end."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedlora.server.events import ClientRefused, to_json
from fedlora.server.records import Outcome, RunInfo
from fedlora.server.store import RunStore
from fedlora.server.views import log
from fedlora.server.views.model import ClientEvent
from tests.server.views.making import configured, log_lines, quiet_views, row


@pytest.fixture
def run(store: RunStore) -> RunInfo:
    return store.create(configured(), name="n")


def told(run: RunInfo, *events: tuple[int, int]) -> None:
    """(round, client) of refusals."""
    for number, client in events:
        refused = ClientRefused(run=run.id, round=number, row=row(client, Outcome.LOST, f"no answer in {number}"))
        log_lines(run.folder, json.loads(to_json(refused)))


def rounds(events: Sequence[ClientEvent]) -> list[tuple[int, str]]:
    return [(event.round, event.client) for event in events]


def test_newest_first_of_all_or_of_one(store: RunStore, run: RunInfo) -> None:
    told(run, (1, 0), (1, 1), (2, 1))
    log_lines(run.folder, {"event": "round_committed", "round": 2, "metrics": {"client_re": 1}})
    views = quiet_views(store)
    assert rounds(views.client_events(run.id).events) == [(2, "south"), (1, "south"), (1, "north")]
    assert rounds(views.client_events(run.id, "north").events) == [(1, "north")]
    (event,) = views.client_events(run.id, "north").events
    assert (event.event, event.outcome, event.reason) == ("client_refused", "lost", "no answer in 1")
    assert views.client_events(run.id, "stranger").events == ()
    assert views.client_events(run.id, "0").events == ()


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_join_without_a_gap(store: RunStore, run: RunInfo, limit: int) -> None:
    told(run, *((number, number % 3) for number in range(1, 8)))
    views = quiet_views(store)
    found, before = [], None
    while True:
        page = views.client_events(run.id, before=before, limit=limit)
        found += page.events
        before = page.before
        if before is None:
            break
    assert [event.round for event in found] == [7, 6, 5, 4, 3, 2, 1]


def test_a_log_that_is_not_there_or_not_whole(store: RunStore, run: RunInfo) -> None:
    views = quiet_views(store)
    assert views.client_events(run.id).events == ()
    told(run, (1, 0))
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('\n      \nnonsense\n{"event":"client_reported","round":9,"ro')
    assert rounds(views.client_events(run.id).events) == [(1, "north")]


def test_a_position_that_was_never_given_out_does_no_harm(store: RunStore, run: RunInfo) -> None:
    told(run, (1, 0), (2, 0))
    views = quiet_views(store)
    for before in (0, 1, 7, 10**12):
        assert {event.round for event in views.client_events(run.id, before=before).events} <= {1, 2}


def test_one_question_reads_so_much_and_the_next_goes_on(
    store: RunStore, run: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(run, (1, 2), *((number, 0) for number in range(2, 40)))
    monkeypatch.setattr(log, "BLOCK", 64)
    monkeypatch.setattr(log, "MOST_READ", 500)
    views = quiet_views(store)
    page = views.client_events(run.id, "west")
    assert page.events == ()
    asked = 1
    while page.before is not None and not page.events:
        page = views.client_events(run.id, "west", page.before)
        asked += 1
    assert rounds(page.events) == [(1, "west")]
    assert 5 < asked < 60


@given(
    lines=some.lists(some.binary(max_size=40).map(lambda data: data.replace(b"\n", b"x"))), rest=some.binary(max_size=9)
)
def test_backwards_is_forwards_turned_round(
    lines: list[bytes], rest: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "backwards.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + rest.replace(b"\n", b"x"))
    for block in (1, 3, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(log, "BLOCK", block)
            found = list(log._backwards(Path(path), None, 1 << 20))
        assert [line for _, line in reversed(found)] == lines
        assert all(path.read_bytes()[place:].startswith(line + b"\n") for place, line in found)
