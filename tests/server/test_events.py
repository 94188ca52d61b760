import dataclasses
import json
import resource
import subprocess
import sys
import threading
from datetime import UTC
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import StoreError
from fedlora.server import events
from fedlora.server.durable import replace_synced
from fedlora.server.events import (
    EVENTS,
    ClientRefused,
    ClientReported,
    Emitter,
    Event,
    EventLog,
    RoundCommitted,
    RoundRetried,
    RoundStarted,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
    from_json,
    read_events,
    to_json,
)
from fedlora.server.records import Numbers, Outcome, RosterRow

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3)
ROWS = st.builds(
    RosterRow, client=st.integers(0, 2**40), outcome=st.sampled_from(Outcome), reason=TEXT, metrics=NUMBERS
)
VALUES = {
    "run": TEXT,
    "time": st.datetimes(timezones=st.just(UTC)),
    "row": ROWS,
    "metrics": NUMBERS,
    "summary": NUMBERS,
    "cohort": st.lists(st.integers(0, 2**40)).map(tuple),
    "eta_seconds": st.none() | st.floats(0, 1e9),
    "seconds": st.floats(0, 1e9),
    "wait": st.floats(0, 1e9),
}


def any_event(kind: type[Event]) -> st.SearchStrategy[Event]:
    known = {field.name for field in dataclasses.fields(kind)} & VALUES.keys()
    if kind in (RunStarted, RunResumed):
        known.remove("cohort")  # a number there
    return st.builds(kind, **{name: VALUES[name] for name in known})


def started(number: int) -> RoundStarted:
    return RoundStarted(run="r", round=number, rounds=9, cohort=(1, 2))


def committed(samples: ModuleType, number: int = 1, eta: float | None = None) -> RoundCommitted:
    return RoundCommitted.of("r", samples.record(number), rounds=9, eta_seconds=eta)


@given(st.sampled_from(EVENTS).flatmap(any_event))
def test_every_event_survives_its_line(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event
    assert json.loads(line)["event"] == event.event


def test_a_line_is_strict_json_with_the_name_first_and_the_time_in_utc() -> None:
    numbers: Numbers = {"a": float("nan"), "b": float("inf"), "c": -float("inf")}
    line = to_json(RunFinished(run="r", round=3, rounds=3, summary=numbers, seconds=1.0))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    raw = json.loads(line, parse_constant=refuse)
    assert list(raw)[:3] == ["event", "run", "time"]
    assert raw["time"].endswith("Z")
    assert raw["summary"] == {"a": "nan", "b": "inf", "c": "-inf"}
    back = from_json(line)
    assert isinstance(back, RunFinished)
    assert str(back.summary["a"]) == "nan"


def test_a_committed_round_tells_what_its_record_has(samples: ModuleType) -> None:
    event = committed(samples, eta=12.5)
    assert (event.round, event.rounds, event.reported, event.refused, event.eta_seconds) == (1, 9, 1, 1, 12.5)
    assert (event.bytes_up, event.bytes_down, event.bytes_once, event.seconds) == (200, 400, 7, 1.5)
    assert event.metrics == samples.record(1).metrics


def test_a_log_is_read_back(tmp_path: Path, samples: ModuleType) -> None:
    row = samples.record(1).roster[1]
    stream: list[Event] = [
        RunStarted(
            run="r", name="n", strategy="fedavg", rounds=1, clients=3, cohort=2, engine="sequential", folder="/runs/r"
        ),
        started(1),
        ClientReported(run="r", round=1, row=samples.record(1).roster[0]),
        ClientRefused(run="r", round=1, row=row),
        committed(samples),
        RunStopped(run="r", round=1, rounds=2, reason="Ctrl-C", seconds=3.0),
        RunResumed(
            run="r",
            name="n",
            strategy="x",
            round=1,
            rounds=2,
            clients=3,
            cohort=2,
            engine="sequential",
            folder="/runs/r",
        ),
        RoundRetried(run="r", round=2, attempt=1, wait=5.0, reason="too few"),
        RunFailed(run="r", round=1, rounds=2, error="RunError", reason="too few\nclients", seconds=1.0),
        RunFinished(run="r", round=2, rounds=2, summary={"test_accuracy": 0.9}, seconds=3.0),
    ]
    assert {type(event) for event in stream} == set(EVENTS)
    path = tmp_path / "new" / "events.jsonl"
    for part in (stream[:4], stream[4:]):
        with EventLog(path) as log:
            for event in part:
                log.append(event)
    assert list(read_events(path)) == stream
    assert len(path.read_bytes().splitlines()) == len(stream)


@pytest.mark.parametrize("tail", [b'{"event":"round_sta', b"{", b"\x00" * 5000, b"x" * 200_000])
def test_a_torn_line_is_left_out_and_mended(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "events.jsonl"
    whole = [started(1), started(2)]
    with EventLog(path) as log:
        for event in whole:
            log.append(event)
    with path.open("ab") as file:
        file.write(tail)
    assert list(read_events(path)) == whole
    with EventLog(path) as log:
        log.append(started(3))
    assert [event.round for event in read_events(path)] == [1, 2, 3]


def test_a_log_of_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"y" * 70_000)
    EventLog(path).close()
    assert path.read_bytes() == b""


def test_a_killed_writer_leaves_a_log_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = (
        "import sys; from pathlib import Path; from fedlora.server.events import EventLog, RoundStarted\n"
        "log = EventLog(Path(sys.argv[1])); number = 0\n"
        "while True:\n"
        "    log.append(RoundStarted(run='r', round=number, rounds=9, cohort=tuple(range(50)))); number += 1\n"
        "    if number == 20: sys.stdout.write('go\\n'); sys.stdout.flush()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.kill()
    numbers = [event.round for event in read_events(path) if isinstance(event, RoundStarted)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 20


def test_a_reader_beside_a_writer_sees_whole_events_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    wrong: list[list[int]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            numbers = [event.round for event in read_events(path)]  # type: ignore[union-attr]
            if numbers != list(range(len(numbers))):
                wrong.append(numbers)

    with EventLog(path) as log:
        reader = threading.Thread(target=read)
        reader.start()
        for number in range(300):
            log.append(started(number))
        done.set()
        reader.join()
    assert wrong == []


@pytest.mark.parametrize("line", [b"{}", b"not json", b'{"event":"from_the_future","run":"r"}', b""])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(to_json(started(1)).encode() + b"\n" + line + b"\n")
    with pytest.raises(StoreError, match=r"line 2 of .*events\.jsonl is no event of this fedlora"):
        list(read_events(path))


def test_a_missing_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read the event log .*none\.jsonl"):
        list(read_events(tmp_path / "none.jsonl"))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    size = len(to_json(started(1))) + 1
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventLog(path) as log:
        log.append(started(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, old[1]))
        try:
            with pytest.raises(StoreError, match=r"cannot write the event log .*bytes are free"):
                log.append(started(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert path.stat().st_size == size
        log.append(started(3))
    assert [event.round for event in read_events(path)] == [1, 3]  # type: ignore[union-attr]


def test_committed_rounds_and_ends_are_synced(
    tmp_path: Path, samples: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    with EventLog(tmp_path / "events.jsonl") as log:
        monkeypatch.setattr(events.os, "fsync", synced.append)
        log.append(started(1))
        assert synced == []
        log.append(committed(samples))
        log.append(RunStopped(run="r", round=1, rounds=2, reason="x", seconds=0.0))
        assert len(synced) == 2
        monkeypatch.undo()


def test_an_emitter_gives_each_event_to_the_log_and_then_to_everyone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    seen: list[tuple[str, Event, int]] = []

    def listen(name: str) -> events.Listener:
        return lambda event: seen.append((name, event, len(list(read_events(path)))))

    with EventLog(path) as log:
        emit = Emitter(log, [listen("a"), listen("b")])
        emit(started(1))
        emit(started(2))
    assert [(name, event.round, logged) for name, event, logged in seen] == [  # type: ignore[union-attr]
        ("a", 1, 1),
        ("b", 1, 1),
        ("a", 2, 2),
        ("b", 2, 2),
    ]


def test_what_a_listener_raises_reaches_the_caller() -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Emitter(None, [stop])(started(1))


def test_rewriting_beside_an_open_log(tmp_path: Path, samples: ModuleType) -> None:
    """The file is another one, and the log goes on in it."""
    path = tmp_path / "events.jsonl"
    row = samples.record(1).roster[0]
    with EventLog(path) as log:
        log.append(ClientReported(run="r", round=1, row=row))
        replace_synced(path, path.read_bytes())
        log.append(ClientReported(run="r", round=2, row=row))
        path.unlink()
        log.append(ClientReported(run="r", round=3, row=row))
        log.append(ClientReported(run="r", round=4, row=row))
    assert [event.round for event in read_events(path)] == [3, 4]  # type: ignore[union-attr]
