"""The stream: what it says, to whom, and that nothing is lost when it breaks."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from fedlora.server.dashboard import lines, watcher
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.people import Person
from fedlora.server.dashboard.stream import Wish, tell
from fedlora.server.dashboard.watcher import Changes, Feed, Watcher
from fedlora.server.events import FILE, ClientRefused, ClientReported, EventLog, RoundCommitted, RunFailed
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunInfo
from fedlora.server.store import RunStore
from tests.server.dashboard.asking import OPERATOR, VIEWER, dashboard, site_of
from tests.server.dashboard.stores import HOSTILE, make_run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def context(store: RunStore) -> Context:
    return dashboard(store).context


Told = list[tuple[str, int | None, Any]]


def parsed(text: bytes) -> Told:
    """Event, id and data of each message."""
    found: Told = []
    for block in text.decode().strip("\n").split("\n\n"):
        parts = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((parts["event"], int(parts["id"]) if "id" in parts else None, json.loads(parts["data"])))
    return found


class Ear:
    """Listens to one stream."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.heard: Told = []

    async def until(self, event: str, count: int = 1, longest: float = 10.0) -> Told:
        """Everything heard when `event` was heard `count` times."""
        async with asyncio.timeout(longest):
            while sum(name == event for name, _, _ in self.heard) < count:
                self.heard += parsed(await anext(self._pieces))
        return self.heard


def listen(
    context: Context, scenario: Callable[[Watcher, Callable[..., Any]], Awaitable[None]], heartbeat: float = 10.0
) -> None:
    """Runs a scenario with a watcher and a way to open streams; all of them are closed afterwards."""

    async def whole() -> None:
        seen, opened = Watcher(context), []

        def ear(person: Person, run: RunInfo | None = None, after: int | None = None, see: Any = lines.whole) -> Ear:
            pieces = tell(seen, context, Wish(person, run, see, after), heartbeat)
            opened.append(pieces)
            return Ear(pieces)

        try:
            await scenario(seen, ear)
        finally:
            for pieces in opened:
                async with aclosing(pieces):  # type: ignore[type-var]
                    pass

    anyio.run(whole)


def commit(store: RunStore, run: RunInfo, number: int) -> None:
    """A further round: its row, then its line."""
    record = store.commit_round(run, RoundRecord(number, {"validation_accuracy": 0.9}, ()))
    with EventLog(run.folder / FILE) as log:
        log.append(RoundCommitted.of(run.id, record, rounds=run.rounds))


def test_it_begins_with_hello_and_tells_of_a_round_within_half_a_second(context: Context, store: RunStore) -> None:
    run = make_run(store, done=2, status=None)

    async def scenario(_: Watcher, ear: Callable[..., Ear]) -> None:
        found = ear(OPERATOR, run)
        ((name, number, _data),) = await found.until("hello")
        assert (name, number) == ("hello", 3)
        began = time.monotonic()
        await asyncio.to_thread(commit, store, run, 3)
        told = await found.until("line")
        assert time.monotonic() - began < 2  # 0.5 s on a quiet machine
        assert [(name, number) for name, number, _ in told if name == "line"] == [("line", 4)]
        (change,) = [data for name, _, data in await found.until("runs") if name == "runs"]
        assert [(row["id"], row["round"]) for row in change["rows"]] == [(run.id, 3)]

    listen(context, scenario)


def test_what_was_missed_is_told_after_the_last_id(context: Context, store: RunStore) -> None:
    run = make_run(store, done=5, status=None)

    async def scenario(_: Watcher, ear: Callable[..., Ear]) -> None:
        found = await ear(OPERATOR, run, after=2).until("line", 4)
        assert [number for name, number, _ in found if name == "line"] == [3, 4, 5, 6]

    listen(context, scenario)


def test_an_id_from_the_future_is_taken_as_now(context: Context, store: RunStore) -> None:
    run = make_run(store, done=2, status=None)

    async def scenario(_: Watcher, ear: Callable[..., Ear]) -> None:
        found = ear(OPERATOR, run, after=10**9)
        await found.until("hello")
        await asyncio.to_thread(commit, store, run, 3)
        assert (await found.until("line"))[-1][1] == 4 or found.heard[-1][0] == "runs"

    listen(context, scenario)


def test_lines_that_are_no_longer_kept_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_KEPT", 10)
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(1, 101)))
    feed = Feed(path)
    assert feed.look()
    assert not feed.look()
    assert feed.last == 100
    assert [number for number, _ in feed.known(95) or ()] == [96, 97, 98, 99, 100]
    assert [number for number, _ in feed.read(3)] == list(range(4, 101))
    assert feed.known(100) == ()


def test_many_pages_cost_one_look(context: Context, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(store, done=2, status=None)
    made = []
    views = context.views
    asked = type("Counting", (), {"runs": lambda _: (made.append(1), views.runs())[1]})()
    context = replace(context, views=asked)

    async def scenario(seen: Watcher, ear: Callable[..., Ear]) -> None:
        ears = [ear(OPERATOR, run) for _ in range(20)]
        for one in ears:
            await one.until("hello")
        before = len(made)
        await asyncio.to_thread(commit, store, run, 3)
        for one in ears:
            await one.until("line")
            await one.until("runs")
        assert len(made) - before <= 3
        assert len(seen._feeds) == 1

    listen(context, scenario)


def test_a_quiet_stream_shows_that_it_is_alive_and_ends_with_the_server(context: Context) -> None:
    async def scenario(_: Watcher, ear: Callable[..., Ear]) -> None:
        found = ear(OPERATOR)
        await found.until("alive", 2)
        context.closing.set()
        assert (await found.until("closing"))[-1][0] == "closing"

    listen(context, scenario, heartbeat=0.05)


def test_the_last_reader_takes_the_log_along(context: Context, store: RunStore) -> None:
    run = make_run(store, done=1, status=None)

    async def scenario(seen: Watcher, ear: Callable[..., Ear]) -> None:
        pieces = tell(seen, context, Wish(OPERATOR, run, lines.whole, None))
        await anext(pieces)
        assert run.id in seen._feeds
        await pieces.aclose()  # type: ignore[attr-defined]
        assert run.id not in seen._feeds

    listen(context, scenario)


def test_a_collaborator_hears_only_that_its_run_went_on(context: Context, store: RunStore) -> None:
    run, other = make_run(store, done=1, status=None), make_run(store, done=1, status=None)

    async def scenario(_: Watcher, ear: Callable[..., Ear]) -> None:
        found = ear(site_of(run.id, "hospital-000"), run, None, lines.own(0))
        await found.until("hello")
        await asyncio.to_thread(commit, store, other, 2)
        await asyncio.to_thread(commit, store, run, 2)
        told = await found.until("mine")
        await found.until("line")
        assert {name for name, _, _ in told} <= {"hello", "mine", "line"}
        assert other.id not in json.dumps(found.heard)

    listen(context, scenario)


def row(client: int, outcome: Outcome = Outcome.REPORTED, reason: str = "") -> RosterRow:
    return RosterRow(client, outcome, reason, samples=7, bytes_up=9)


def line(event: Any) -> bytes:
    from fedlora.server.events import to_json

    return to_json(event).encode()


REPORTED = line(ClientReported(run="r", round=1, row=row(0)))
REFUSED = line(ClientRefused(run="r", round=1, row=row(1, Outcome.DECLINED, HOSTILE)))
FAILED = line(RunFailed(run="r", round=1, rounds=2, error="QuorumError", reason="waits for hospital-001", seconds=1))


def test_lines_are_for_those_who_may_see_them() -> None:
    assert json.loads(lines.whole(REFUSED) or b"")["row"]["reason"] == HOSTILE
    assert lines.released(REPORTED) is None
    assert lines.released(REFUSED) is None
    assert b"hospital-001" not in (lines.released(FAILED) or b"")
    assert lines.own(0)(REPORTED) is not None
    assert lines.own(0)(REFUSED) is None
    assert lines.own(None)(REPORTED) is None
    assert lines.whole(b"    ") is None
    assert lines.whole(b'{"no": "event"}') is None
    assert b"\n" not in (lines.whole(REFUSED) or b"")


def test_a_committed_round_tells_those_without_rosters_no_count() -> None:
    record = RoundRecord(1, {"clip_bound": 1.0}, (row(0),), bytes_up=9, seconds=2)
    found = json.loads(lines.released(line(RoundCommitted.of("r", record, rounds=2))) or b"")
    assert found["metrics"] == {"clip_bound": 1.0}
    assert not {"reported", "refused", "bytes_up", "seconds", "eta_seconds"} & set(found)


def test_changes_keep_the_newest_value_for_whoever_is_behind() -> None:
    changes = Changes()
    assert changes.put({"a": 1, "b": 1})
    assert not changes.put({"a": 1, "b": 1})
    before = changes.version
    changes.put({"a": 2, "b": 1})
    changes.put({"a": 3})
    assert changes.after(before) == {"a": 3, "b": None}
    assert changes.after(changes.version) == {}
    assert not changes.put({"a": 3})


def test_presences_are_for_operators(context: Context) -> None:
    from fedlora.link.hub import Presence

    there: dict[str, Presence] = {}
    context = replace(context, presences=lambda: there)

    async def scenario(_: Watcher, ear: Callable[..., Ear]) -> None:
        operator, viewer = ear(OPERATOR), ear(VIEWER)
        await operator.until("hello")
        await viewer.until("hello")
        there["hospital-000"] = Presence(version="0.1")
        told = await operator.until("clients")
        assert told[-1][2][0]["name"] == "hospital-000"
        with pytest.raises(TimeoutError):
            await viewer.until("clients", longest=0.6)

    listen(context, scenario)
