"""A round's rows go to the log in one write, as one by one they would, and to listeners one after another."""

from pathlib import Path

from fedlora.server.events import ClientRefused, ClientReported, Emitter, Event, EventLog, RoundStarted, read_events
from fedlora.server.records import Outcome, RosterRow
from fedlora.server.scrub import Erasures, exclusive, note


def rows(count: int) -> list[Event]:
    return [ClientReported(run="r", round=1, row=RosterRow(client, Outcome.REPORTED)) for client in range(count)]


def test_many_events_are_what_one_after_another_would_be(tmp_path: Path) -> None:
    events = [*rows(50), ClientRefused(run="r", round=1, row=RosterRow(50, Outcome.LOST, "no answer"))]
    heard: list[Event] = []
    with EventLog(tmp_path / "many" / "events.jsonl") as many, EventLog(tmp_path / "one" / "events.jsonl") as one:
        Emitter(many, [heard.append]).many(events)
        for event in events:
            Emitter(one)(event)
    assert heard == events
    assert (tmp_path / "many" / "events.jsonl").read_bytes() == (tmp_path / "one" / "events.jsonl").read_bytes()
    assert list(read_events(tmp_path / "many" / "events.jsonl")) == events


def test_nothing_of_an_erased_client_is_added_among_others(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        with exclusive(tmp_path):
            note(tmp_path, Erasures(clients={1: None}))
        log.extend(rows(3))
        log.extend(rows(2)[1:])  # of the erased one alone: nothing is left
    found = [event for event in read_events(tmp_path / "events.jsonl") if not isinstance(event, RoundStarted)]
    assert [event.row.client for event in found if isinstance(event, ClientReported)] == [0, 2]
