"""Messages go out and answers come back over a real mutual-TLS connection, each once, whatever breaks between."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedlora.link import hub, limits
from fedlora.link.client import TurnedAwayError
from fedlora.link.grid import CLIENT_FAILED
from fedlora.link.session import Session
from fedlora.link.v1.link_pb2 import Goodbye
from fedlora.privacy.declined import RoundClosedError
from fedlora.server.admission import LATE_CODE, LOST_CODE
from fedlora.wire import declined_reason
from tests.link.world import Daemon, Scripted, World, decoded, eventually, make_world, message, values


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def started(world: World, tmp_path: Path) -> Iterator[list[Daemon]]:
    daemons: list[Daemon] = []
    yield daemons
    for daemon in daemons:
        daemon.stop()


def start(world: World, daemons: list[Daemon], handler: Scripted, site: str | None = None) -> Daemon:
    name = site or f"site-{handler.number}"
    daemon = Daemon(world.dial(name), handler, world.folder / "answers" / f"{name}-{len(daemons)}")
    daemons.append(daemon)
    return daemon


def test_each_site_answers_and_its_update_is_gone_after_the_commit(world: World, started: list[Daemon]) -> None:
    clients = [Scripted(number) for number in range(3)]
    with world.server() as host:
        for client in clients:
            start(world, started, client)
        grid = world.grid(host, ["site-0", "site-1", "site-2"])
        for round_number in (1, 2):
            replies = list(grid.send_and_receive([message(i, round_number) for i in range(3)]))
            assert values(replies) == {2: round_number, 3: round_number + 1, 4: round_number + 2}
        assert len(list((world.folder / "run-1" / "incoming").iterdir())) == 6
        grid.committed(1)
        assert len(list((world.folder / "run-1" / "incoming").iterdir())) == 3
        grid.committed(2)
        assert not list((world.folder / "run-1" / "incoming").iterdir())
        eventually(lambda: all(client.acknowledged == [True, True] for client in clients))
    assert [client.sent for client in clients] == [[0, 0]] * 3


def test_an_answer_of_many_chunks_arrives_whole(world: World, started: list[Daemon]) -> None:
    with world.server() as host:
        start(world, started, Scripted(5))
        grid = world.grid(host, ["site-5"])
        reply = next(iter(grid.send_and_receive([message(0, 3, numbers=1_000_000)])))
        found = decoded(reply.content, 1_000_000)
        assert found.shape == (1_000_000,)
        assert (found == 8.0).all()


def test_a_refusal_comes_before_any_array_and_a_failure_tells_no_foreign_text(
    world: World, started: list[Daemon]
) -> None:
    def breaks(task: object) -> None:
        raise ValueError("patient 17 has a comma in the name")

    with world.server() as host:
        start(world, started, Scripted(0, refusal=lambda offer: "not at night"))
        start(world, started, Scripted(1, before_work=breaks))
        grid = world.grid(host, ["site-0", "site-1"])
        declined, failed = grid.send_and_receive([message(0, 1), message(1, 1)])
        assert declined_reason(declined.content) == "not at night"
        assert failed.error.code == CLIENT_FAILED
        assert "patient" not in failed.error.reason
        assert "ValueError" in failed.error.reason


def test_who_is_not_there_is_lost_and_who_comes_late_is_told(world: World, started: list[Daemon]) -> None:
    late = Scripted(1, before_work=lambda task: time.sleep(1.0))
    with world.server() as host:
        start(world, started, late)
        grid = world.grid(host, ["site-0", "site-1"], absence=0.3)
        absent, slow = grid.send_and_receive([message(0, 1), message(1, 1)], timeout=0.6)
        assert absent.error.code == slow.error.code == LOST_CODE
        assert "not been connected" in absent.error.reason
        assert "deadline" in slow.error.reason
        eventually(lambda: late.acknowledged == [False])
        assert not late.sent


def test_who_did_not_hear_that_it_was_counted_is_told_when_it_comes_back(
    world: World, started: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledge, lost = Session._acknowledge, []

    def breaks_off(self: Session, work: str) -> None:
        if not lost:
            lost.append(work)
            self.end(Goodbye(reason="the line breaks", retry=True))
        else:
            acknowledge(self, work)

    monkeypatch.setattr(Session, "_acknowledge", breaks_off)
    client = Scripted(0)
    with world.server() as host:
        start(world, started, client)
        grid = world.grid(host, ["site-0"])
        assert values(list(grid.send_and_receive([message(0, 1)]))) == {2: 1.0}
        grid.committed(1)
        eventually(lambda: client.acknowledged == [True])
    assert len(lost) == len(client.worked) == len(client.sent) == 1


def test_a_server_that_comes_back_counts_what_it_had_and_asks_for_the_rest(world: World, started: list[Daemon]) -> None:
    quick, slow = Scripted(0), Scripted(1, before_work=lambda task: time.sleep(1.0))
    with world.server() as host:
        start(world, started, quick)
        start(world, started, slow)
        world.grid(host, ["site-0", "site-1"]).ask([message(0, 1), message(1, 1)])
        eventually(lambda: quick.acknowledged == [True] and len(slow.worked) == 1)
    with world.server() as host:
        grid = world.grid(host, ["site-0", "site-1"])
        replies = list(grid.send_and_receive([message(0, 1), message(1, 1)]))
    assert values(replies) == {2: 1.0, 3: 2.0}
    assert len(quick.worked) == len(slow.worked) == 1


def test_an_answer_that_was_given_is_sent_again_not_made_again(world: World, started: list[Daemon]) -> None:
    client = Scripted(0)
    with world.server() as host:
        start(world, started, client)
        first = list(world.grid(host, ["site-0"]).send_and_receive([message(0, 1)]))
        for path in (world.folder / "run-1" / "incoming").iterdir():  # the server's disk was set back
            path.unlink()
        second = list(world.grid(host, ["site-0"]).send_and_receive([message(0, 1)]))
    assert values(first) == values(second)
    assert len(client.worked) == 1


def test_a_second_daemon_with_the_same_name_is_turned_away_while_the_first_lives(
    world: World, started: list[Daemon]
) -> None:
    with world.server() as host:
        start(world, started, Scripted(0))
        eventually(lambda: "site-0" in host.hub.connected())
        second = start(world, started, Scripted(0, instance="second"), "site-0")
        second.join()
        assert isinstance(second.error, TurnedAwayError)
        assert "connected already" in str(second.error)
        assert values(list(world.grid(host, ["site-0"]).send_and_receive([message(0, 1)]))) == {2: 1.0}


def test_whether_a_round_is_open_is_asked_of_the_server(world: World, started: list[Daemon]) -> None:
    found: list[bool] = []

    def look(task: object) -> None:
        found.append(task.still_open())  # type: ignore[attr-defined]
        if len(found) == 2:
            time.sleep(0.8)
            found.append(task.still_open())  # type: ignore[attr-defined]
            raise RoundClosedError("the round ended")

    with world.server() as host:
        start(world, started, Scripted(0, before_work=look))
        grid = world.grid(host, ["site-0"])
        grid.send_and_receive([message(0, 1)])
        grid.send_and_receive([message(0, 2)], timeout=0.4)
        eventually(lambda: len(found) == 3)
    assert found == [True, True, False]


def test_a_round_that_has_what_it_needs_waits_for_nobody(world: World, started: list[Daemon]) -> None:
    slow = Scripted(1, before_work=lambda task: time.sleep(1.0))
    with world.server() as host:
        for client in (Scripted(0), slow, Scripted(2)):
            start(world, started, client)
        grid = replace(world.grid(host, ["site-0", "site-1", "site-2"]), enough=2)
        began = time.monotonic()
        first, late, third = grid.send_and_receive([message(i, 1) for i in range(3)])
        assert time.monotonic() - began < 1.0
        assert values([first, third]) == {2: 1.0, 4: 3.0}
        assert late.error.code == LATE_CODE
        eventually(lambda: slow.acknowledged == [False])
    assert not slow.sent


def test_a_round_that_waits_says_for_whom(world: World, started: list[Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL", 0.3)
    said: list[str] = []
    monkeypatch.setattr(hub.log, "warning", lambda form, text: said.append(text))
    with world.server() as host:
        start(world, started, Scripted(1, before_work=lambda task: time.sleep(1.0)))
        eventually(lambda: "site-1" in host.hub.connected())
        grid = world.grid(host, ["site-0", "site-1"], absence=1.0)
        grid.send_and_receive([message(0, 1), message(1, 1)])
    assert said
    assert said[0].startswith("run run-1, round 1 still waits for site-0 (away for 0 s), site-1 (connected")
