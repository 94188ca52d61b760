"""A run's events over HTTP: whole lines, from any line on, through breaks of the connection, to the end."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import ExitCode, IdentityError, LinkError, UnknownRunError
from fedlora.server.events import FILE, Event, RoundCommitted, read_events
from fedlora.server.operator.client import LostError, OperatorClient
from fedlora.server.operator.messages import ALIVE, END, MESSAGE, end, message, read_messages
from fedlora.server.operator.stream import Tail, exit_code, server_sent
from fedlora.server.operator.watch import follow
from fedlora.server.queue import RunQueue
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore
from tests.server.operator.living import SHORT, Living, living

RUNS = "/api/v1/runs"


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def client(alive: Living) -> Iterator[OperatorClient]:
    with OperatorClient(alive.access) as opened:
        yield opened


def submitted(client: OperatorClient) -> str:
    return str(client.submit("key", SHORT, None)["id"])


def log_of(alive: Living, run_id: str) -> list[str]:
    return (alive.store.get(run_id).folder / FILE).read_text().splitlines()


@given(st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b" ")), max_size=40), st.integers(0, 45))
def test_a_tail_gives_each_whole_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], after: int
) -> None:
    path = tmp_path_factory.mktemp("tail") / "log"
    tail, found = Tail(path, after), []
    assert tail.read() == []
    with path.open("wb", buffering=0) as file:
        for line in lines:
            middle = len(line) // 2
            file.write(line[:middle])
            found += tail.read()
            file.write(line[middle:] + b"\n")
            if len(line) % 2:
                found += tail.read()
    found += tail.read()
    assert found == list(enumerate(lines, start=1))[after:]
    assert tail.read() == []


def test_a_tail_of_a_long_log_and_a_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.server.operator.stream._PART", 64)
    lines = [b"x" * 1000, *(b"%d" % number for number in range(500)), b"y" * 100]
    (tmp_path / "log").write_bytes(b"\n".join(lines) + b"\nunfinished" * 1 + b"z" * 200)
    tail, found = Tail(tmp_path / "log", 3), []
    while part := tail.read():
        assert len(part) < 40
        found += part
    assert found == list(enumerate(lines, start=1))[3:]


def test_events_as_lines(client: OperatorClient, alive: Living) -> None:
    run_id = submitted(client)
    with alive.http() as http:
        assert http.get(f"{RUNS}/{run_id}/events").text.count("\n") <= 1, "it has just begun"
        alive.player.free()
        until(lambda: client.shown(run_id)["run"]["status"] == "finished")
        response = http.get(f"{RUNS}/{run_id}/events")
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.text.splitlines() == log_of(alive, run_id)
        assert len(log_of(alive, run_id)) == 6
        assert http.get(f"{RUNS}/{run_id}/events?after=4").text.splitlines() == log_of(alive, run_id)[4:]
        assert http.get(f"{RUNS}/{run_id}/events?after=99").text == ""
        for wrong in ("-1", "x", "9" * 30):
            assert http.get(f"{RUNS}/{run_id}/events?after={wrong}").status_code == 422


def test_the_stream_begins_before_the_run_and_ends_with_it(client: OperatorClient, alive: Living) -> None:
    queue = [submitted(client), str(client.submit("other", SHORT, None)["id"])]
    got: list[tuple[str, int, str]] = []
    reader = threading.Thread(target=lambda: got.extend(client.messages(queue[1], 0)))
    reader.start()
    alive.player.free()
    reader.join(20)
    events = [one for one in got if one[0] == MESSAGE]
    assert [number for _, number, _ in events] == [1, 2, 3, 4, 5, 6]
    assert [text for _, _, text in events] == log_of(alive, queue[1])
    assert got[-1][0] == END
    assert json.loads(got[-1][2]) == {"status": "finished", "reason": "", "exit_code": 0}


def test_a_stream_goes_on_after_the_last_id(client: OperatorClient, alive: Living) -> None:
    run_id = submitted(client)
    alive.player.free(2)
    first = []
    for kind, number, text in client.messages(run_id, 0):
        if kind == MESSAGE:
            first.append((number, text))
        if len(first) == 3:
            break  # the connection is given up in the middle
    alive.player.free()
    rest = [(number, text) for kind, number, text in client.messages(run_id, 3) if kind == MESSAGE]
    assert [number for number, _ in first + rest] == [1, 2, 3, 4, 5, 6]
    assert [text for _, text in first + rest] == log_of(alive, run_id)


def test_a_stream_shows_that_it_is_alive(store: RunStore, queued: RunInfo) -> None:
    """While nothing happens, and it ends without an end when the server does."""

    async def collect() -> list[bytes]:
        found: list[bytes] = []
        async for part in server_sent(RunQueue(store), queued.id, 0, lambda: len(found) == 3, heartbeat=0.3):
            found.append(part)
        return found

    assert anyio.run(collect) == [b": alive\n\n"] * 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def queued(store: RunStore, samples: ModuleType) -> RunInfo:
    return store.create(samples.config(), name="tiny", status=RunStatus.QUEUED)


def test_a_stream_does_not_end_while_its_log_is_written(store: RunStore, queued: RunInfo) -> None:
    """The last event comes after the database says that the run is finished; who writes it holds the run."""

    queue = RunQueue(store)

    async def collect() -> list[bytes]:
        found = []
        async for part in server_sent(queue, queued.id, 0, lambda: len(found) == 3, heartbeat=0.2):
            found.append(part)
        return found

    store.finish(queued, RunStatus.FINISHED)
    with store.lock(queued):
        assert anyio.run(collect) == [b": alive\n\n"] * 3
    queue.driven = queued.id
    assert anyio.run(collect) == [b": alive\n\n"] * 3
    queue.driven = None
    assert [part.partition(b"\n")[0] for part in anyio.run(collect)] == [b": alive", b"event: end"]


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (RunStatus.FINISHED, "", ExitCode.OK),
        (RunStatus.STOPPED, "on request", ExitCode.INTERRUPTED),
        (RunStatus.FAILED, "RunError: too few", ExitCode.RUN_FAILED),
        (RunStatus.FAILED, "PrivacyError: no", ExitCode.PRIVACY),
        (RunStatus.FAILED, "ZeroDivisionError: x", ExitCode.INTERNAL),
        (RunStatus.FAILED, "ExitCode: x", ExitCode.INTERNAL),
        (RunStatus.FAILED, "", ExitCode.INTERNAL),
    ],
)
def test_the_exit_code_of_a_run(
    store: RunStore, queued: RunInfo, status: RunStatus, reason: str, code: ExitCode
) -> None:
    assert exit_code(store.finish(queued, status, reason=reason)) is code


def test_messages_are_read_as_they_are_written() -> None:
    text = (message(7, b'{"a": 1}') + b": alive\n\n" + b"data: one\ndata: two\n\n" + end(b"{}") + b"data: cut").decode()
    assert list(read_messages(iter(text.split("\n")), 3)) == [
        (MESSAGE, 7, '{"a": 1}'),
        (ALIVE, 7, "alive"),
        (MESSAGE, 7, "one\ntwo"),
        (END, 7, "{}"),
    ]


# Following


def followed(client: OperatorClient, run_id: str, **options: float) -> tuple[ExitCode, list[Event], list[LinkError]]:
    events: list[Event] = []
    lost: list[LinkError] = []
    code = follow(client, run_id, events.append, lost.append, **options)
    return code, events, lost


def test_following_to_the_end(client: OperatorClient, alive: Living) -> None:
    run_id = submitted(client)
    alive.player.free()
    code, events, lost = followed(client, run_id)
    assert (code, lost) == (ExitCode.OK, [])
    assert events == list(read_events(alive.store.get(run_id).folder / FILE))


def test_following_a_run_that_fails(client: OperatorClient, alive: Living) -> None:
    alive.player.fail_at = 2
    alive.player.free()
    code, events, _ = followed(client, submitted(client))
    assert code is ExitCode.RUN_FAILED
    assert [event.event for event in events] == ["run_started", "round_committed", "round_committed", "run_failed"]


def test_following_a_run_that_never_began(client: OperatorClient, alive: Living) -> None:
    submitted(client)
    waiting = str(client.submit("other", SHORT, None)["id"])
    client.stop(waiting)
    assert followed(client, waiting)[:2] == (ExitCode.INTERRUPTED, [])


def test_following_through_a_restart(tmp_path: Path, authority: Path) -> None:
    """The server ends in the middle of a run and comes back on its port; each event is told once."""
    events: list[Event] = []
    lost: list[LinkError] = []
    codes: list[ExitCode] = []
    with ExitStack() as first:
        alive = first.enter_context(living(tmp_path / "home", authority))
        port, access = alive.server.port, alive.access
        client = OperatorClient(access)
        run_id = submitted(client)
        watcher = threading.Thread(target=lambda: codes.append(follow(client, run_id, events.append, lost.append)))
        alive.player.free(2)
        watcher.start()
        until(lambda: len(events) == 3)
    until(lambda: len(lost) > 1)
    with living(tmp_path / "home", authority, port) as alive:
        assert alive.store.get(run_id).status in (RunStatus.QUEUED, RunStatus.RUNNING)
        alive.player.free()
        watcher.join(20)
        client.close()
        assert codes == [ExitCode.OK]
        assert events == list(read_events(alive.store.get(run_id).folder / FILE))
    assert [event.round for event in events if isinstance(event, RoundCommitted)] == [0, 1, 2, 3]
    assert isinstance(lost[0], LostError)


@pytest.mark.parametrize("stream_ends", [-0.6, 0.0, 0.6])
def test_a_server_that_ends_closes_its_streams_and_kept_connections(
    tmp_path: Path, authority: Path, caplog: pytest.LogCaptureFixture, stream_ends: float
) -> None:
    """stream_ends: seconds after the server begins to end; before it, the client keeps its connection for later."""
    with living(tmp_path / "home", authority) as alive, OperatorClient(alive.access) as client:
        operator = alive.server
        stream = client.messages(submitted(client), 0)
        next(stream)
        ends = [
            threading.Timer(max(0.0, stream_ends), operator._app.state.closing.set),
            threading.Timer(max(0.0, -stream_ends), lambda: setattr(operator._server, "should_exit", True)),
        ]
        for end in ends:
            end.start()
        with pytest.raises(LostError):
            list(stream)
        for end in ends:
            end.join()
        operator._thread.join(4)
        assert not operator._thread.is_alive()
    assert "timeout graceful shutdown exceeded" not in caplog.text


def test_a_server_does_not_wait_for_somebody_who_does_not_read(
    tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.operator.serve._GRACE", 1)
    with living(tmp_path / "home", authority) as alive, OperatorClient(alive.access) as client:
        next(client.messages(submitted(client), 0))
        list(client.runs())
        began = time.monotonic()
        alive.server.stop()
        assert time.monotonic() - began < 3


def test_a_server_that_is_not_there_at_first_is_an_error(tmp_path: Path, authority: Path) -> None:
    with living(tmp_path / "home", authority) as alive:
        client = OperatorClient(alive.access)
    with client, pytest.raises(LinkError, match="cannot reach the server at https://127"):
        followed(client, "some-run")


def test_a_server_that_does_not_come_back_is_given_up(client: OperatorClient, alive: Living) -> None:
    run_id = submitted(client)
    alive.player.free(1)
    errors: list[LinkError] = []
    threading.Timer(0.5, alive.server.stop).start()
    with pytest.raises(LinkError, match="cannot reach"):
        follow(client, run_id, lambda event: None, errors.append, patience=1.0)
    assert errors


def test_what_following_does_not_repeat(client: OperatorClient, alive: Living) -> None:
    with pytest.raises(UnknownRunError):
        followed(client, "some-run")
    (alive.home / "operator.token").write_text("x" * 43)
    from dataclasses import replace

    with OperatorClient(replace(alive.access, token="x" * 43)) as stranger, pytest.raises(IdentityError):
        followed(stranger, "some-run")


def test_events_of_a_newer_server_are_left_out(client: OperatorClient, alive: Living) -> None:
    run_id = submitted(client)
    until(lambda: (alive.store.get(run_id).folder / FILE).exists())
    with (alive.store.get(run_id).folder / FILE).open("a") as file:
        file.write('{"event": "moon_phase"}\n')
    alive.player.free()
    code, events, _ = followed(client, run_id)
    assert code is ExitCode.OK
    assert len(events) == len(log_of(alive, run_id)) - 1


def test_a_plain_reader_sees_server_sent_events(client: OperatorClient, alive: Living) -> None:
    run_id = submitted(client)
    alive.player.free()
    until(lambda: client.shown(run_id)["run"]["status"] == "finished")
    with alive.http() as http:
        response: httpx.Response = http.get(f"{RUNS}/{run_id}/events/stream?after=5")
    assert response.headers["content-type"].startswith("text/event-stream")
    last = log_of(alive, run_id)[-1]
    ended = '{"status": "finished", "reason": "", "exit_code": 0}'
    assert response.text == f": alive\n\nid: 6\ndata: {last}\n\nevent: end\ndata: {ended}\n\n"
