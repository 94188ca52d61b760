"""Buffered rounds over a real mutual-TLS link: the fast do not wait, and each update counts once, whatever breaks."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedlora.link import content
from fedlora.link.assignment import Task
from fedlora.link.grid import LinkGrid
from fedlora.link.host import LinkHost
from fedlora.link.v1.link_pb2 import Acknowledged
from fedlora.link.workbench import Workbench
from fedlora.server.admission import LOST_CODE
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.committing import Desk, Links, at_work
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import Outcome, RoundRecord
from fedlora.server.rounds import RoundLoop
from fedlora.strategies.fedavg import FedAvg
from fedlora.wire import Answer, read_task, write_answer
from tests.link.world import Daemon, Scripted, World, eventually, make_world, message, values
from tests.server.scripted import Scripted as Run
from tests.server.scripted import change, check_rosters, check_states, first_state, scripted

SITES = [f"site-{number}" for number in range(4)]


@dataclass
class Trainer(Scripted):
    """A client that answers a real task; one that is `held` waits for that."""

    held: threading.Event | None = None

    def work(self, task: Task) -> bytes:
        found = read_task(task.content)
        self.worked.append(task.offer.work)
        if self.held is not None:
            self.held.wait(20)
        tensors = {name: found.tensors[name] + delta for name, delta in change(found).items()}
        answer = Answer(found.run, found.round, found.client, tensors, 1 + found.client, {"loss": 1.0})
        return content.serialised(content.whole(write_answer(answer)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def started(world: World) -> Iterator[list[Daemon]]:
    daemons: list[Daemon] = []
    yield daemons
    for daemon in daemons:
        daemon.stop()


def start(world: World, daemons: list[Daemon], handler: Scripted) -> Daemon:
    daemon = Daemon(world.dial(SITES[handler.number]), handler, world.folder / "answers" / SITES[handler.number])
    daemons.append(daemon)
    return daemon


def incoming(world: World) -> list[Path]:
    return sorted((world.folder / "run-1" / "incoming").iterdir())


def answered(host: LinkHost, site: str) -> bool:
    """Whether an answer of the site's is there and was not looked at yet."""
    return any(work.site == site and work.answered for work in list(host.hub.works.values()))


def buffered_run(grid: LinkGrid, earlier: Run | None = None, **federation: Any) -> tuple[Run, RoundLoop]:
    """A loop over the link, with what it has committed in the first."""
    run = scripted(lambda client, number: None, clients=4, cohort=4, buffer=3, **federation)  # type: ignore[arg-type, return-value]
    run.committed = [] if earlier is None else list(earlier.committed)

    def commit(checkpoint: Checkpoint) -> None:
        run.committed.append(checkpoint)
        grid.committed(checkpoint.round)

    links = Links(
        grid=grid,
        ask=grid.ask,
        measure=lambda state, followed: dict,
        ahead=True,
        commit=commit,
        kept=dict,
        emit=run.events.append,
        stop=lambda: run.stop(),
        desk=Desk(grid.withdraw, grid.present, grid.tidy),
    )
    state = run.committed[-1].state if run.committed else first_state()
    return run, RoundLoop(FlowerStrategy(FedAvg(), state, run.config, "run-1"), run.config, links)


# The grid's part.


def test_pushed_works_are_answered_declined_or_lost_as_others_are(world: World, started: list[Daemon]) -> None:
    with world.server() as host:
        start(world, started, Scripted(0))
        start(world, started, Scripted(1, refusal=lambda offer: "not at night"))
        grid = world.grid(host, SITES[:3], absence=0.3)
        ids = list(grid.push_messages([message(client, 1) for client in range(3)]))
        replies = []
        eventually(lambda: bool(replies.extend(grid.pull_messages(ids)) or len(replies) == 3))
        found = {reply.metadata.src_node_id: reply for reply in replies}
        assert values([found[2]]) == {2: 1.0}
        assert "not at night" in str(found[3].content.config_records)
        assert found[4].error.code == LOST_CODE
        assert "not been connected" in found[4].error.reason
        assert not host.hub.works
        assert not list(grid.pull_messages(ids))


def test_what_is_open_or_unread_outlives_the_commit_and_what_was_counted_does_not(
    world: World, started: list[Daemon]
) -> None:
    with world.server() as host:
        for number in range(2):
            start(world, started, Scripted(number))
        grid = world.grid(host, SITES[:2])
        first, second = grid.push_messages([message(client, 1) for client in range(2)])
        eventually(lambda: len(list(world.folder.glob("run-1/incoming/*.answer"))) == 2)
        eventually(lambda: len(list(grid.pull_messages([first]))) == 1)  # a file is there before its work has ended
        grid.committed(5)
        assert len(incoming(world)) == 1
        eventually(lambda: len(list(grid.pull_messages([second]))) == 1)
        grid.committed(5)
        assert not incoming(world)


def test_what_is_withdrawn_is_closed_at_its_site_and_not_pulled(world: World, started: list[Daemon]) -> None:
    held = threading.Event()

    def wait(task: Task) -> None:
        held.wait(20)

    slow = Scripted(0, before_work=wait)
    with world.server() as host:
        start(world, started, slow)
        grid = world.grid(host, SITES[:1])
        ids = list(grid.push_messages([message(0, 1)]))
        eventually(lambda: len(slow.worked) == 1)
        grid.withdraw(ids, "too old")
        eventually(lambda: slow.acknowledged == [False])
        held.set()
        again = list(grid.push_messages([message(0, 1)]))
        replies = []
        eventually(lambda: bool(replies.extend(grid.pull_messages(again)) or replies))
        assert values(replies) == {2: 1.0}
        assert not list(grid.pull_messages(ids))
    assert len(slow.worked) == 1  # what it had made of the closed work was kept


def test_tidying_leaves_what_is_pushed(world: World, started: list[Daemon]) -> None:
    with world.server() as host:
        for number in range(2):
            start(world, started, Scripted(number))
        list(world.grid(host, SITES[:2]).send_and_receive([message(client, 1) for client in range(2)]))
    with world.server() as host:
        grid = world.grid(host, SITES[:2])
        (kept,) = grid.push_messages([message(1, 1)])
        grid.tidy()
        assert len(incoming(world)) == 1
        (reply,) = grid.pull_messages([kept])
        assert values([reply]) == {3: 2.0}


def test_who_is_connected(world: World, started: list[Daemon]) -> None:
    with world.server() as host:
        grid = world.grid(host, SITES)
        assert list(grid.present()) == []
        start(world, started, Scripted(2))
        eventually(lambda: list(grid.present()) == [4])


# The loop over it.


def test_one_slow_site_holds_nobody_up_and_counts_when_it_is_ready(world: World, started: list[Daemon]) -> None:
    held = threading.Event()
    with world.server() as host:
        for number in range(3):
            start(world, started, Trainer(number))
        slow = Trainer(3, held=held)
        start(world, started, slow)
        eventually(lambda: len(host.hub.connected()) == 4)
        grid = world.grid(host, SITES)
        run, loop = buffered_run(grid, rounds=6)

        def stop() -> bool:  # asked between rounds
            if len(run.committed) == 4 and not held.is_set():
                held.set()
                eventually(lambda: answered(host, SITES[3]))
            return False

        run.stop = stop
        loop.start(RoundRecord(0, {}, ()))
        assert loop.run(0) == 6
    assert [sorted(row.client for row in record.roster) for record in run.records[:3]] == [[0, 1, 2]] * 3
    stale = [row.metrics["staleness"] for record in run.records for row in record.roster if row.client == 3]
    assert stale[0] >= 3
    assert all(row.outcome is Outcome.REPORTED for record in run.records[:-1] for row in record.roster)
    check_rosters(run)
    check_states(run)
    assert not incoming(world)
    assert slow.acknowledged[0]


def test_an_upload_that_comes_twice_counts_once(
    world: World, started: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[str] = []
    real = Workbench._on_acknowledged

    async def acknowledged(bench: Workbench, said: Acknowledged) -> None:
        there = bench._assignments.get(said.work)
        if there is None or said.work in again:
            await real(bench, said)
        else:  # as if the acknowledgement had been lost
            again.append(said.work)
            bench._announce(there)

    monkeypatch.setattr(Workbench, "_on_acknowledged", acknowledged)
    trainers = [Trainer(number) for number in range(4)]
    with world.server() as host:
        for trainer in trainers:
            start(world, started, trainer)
        run, loop = buffered_run(world.grid(host, SITES), rounds=4)
        loop.start(RoundRecord(0, {}, ()))
        assert loop.run(0) == 4
        eventually(lambda: sum(len(trainer.acknowledged) for trainer in trainers) >= 12)
    assert len(again) >= 12
    check_rosters(run)
    check_states(run)
    assert not incoming(world)


def test_a_server_that_dies_asks_again_for_what_was_open_and_counts_nothing_twice(
    world: World, started: list[Daemon]
) -> None:
    held = threading.Event()
    trainers = [Trainer(number, held=held if number == 3 else None) for number in range(4)]

    class Killed(BaseException):
        pass

    with world.server() as host:
        for trainer in trainers:
            start(world, started, trainer)
        eventually(lambda: len(host.hub.connected()) == 4)
        run, loop = buffered_run(world.grid(host, SITES), rounds=6)

        def stop() -> bool:
            if len(run.committed) == 3:
                raise Killed
            return False

        run.stop = stop
        loop.start(RoundRecord(0, {}, ()))
        with pytest.raises(Killed):
            loop.run(0)
        before = Run(run.config, run.grid, committed=list(run.committed))
    assert at_work(before.committed[-1]) == {3: 1}
    held.set()
    with world.server() as host:
        run, loop = buffered_run(world.grid(host, SITES), before, rounds=6)

        loop.resume(before.committed[-1], lambda number: run.committed[number].state)
        eventually(lambda: answered(host, SITES[3]), 30.0)
        assert loop.run(before.committed[-1].round) == 6
    check_rosters(run)
    check_states(run)
    row = next(row for record in run.records for row in record.roster if row.client == 3)
    assert row.outcome is Outcome.REPORTED
    assert row.metrics["staleness"] >= 2
    works = [work for trainer in trainers for work in trainer.worked]
    assert len(works) == len(set(works))  # what was answered before was sent, not made, again
    assert not incoming(world)
