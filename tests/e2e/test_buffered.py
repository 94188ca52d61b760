"""Buffered rounds between processes: a site stands still for a while, the server is killed, nothing counts twice."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation

pytestmark = pytest.mark.slow

SLOW = 2


@pytest.fixture
def federation(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Iterator[Federation]:
    overrides = [
        "federation.buffered=true",
        "federation.buffer=2",
        "federation.release_few=true",
        "federation.rounds=500",  # more than there is time for: the test stops the run
        "federation.max_staleness=100",
        "eval.every=1000",
    ]
    found = Federation(tmp_path, tiny_bert, tiny_text_csv, overrides=overrides)
    found.prepare()
    yield found
    for process in found.processes.values():
        process.send_signal(signal.SIGCONT)  # one that stands still does not end otherwise
    found.stop()


def counted(shown: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(client, the round that its update was begun in, the round in which it counted) of a run."""
    return [
        (row["client"], record["round"] - int(row["metrics"]["staleness"]), record["round"])
        for record in shown["rounds_list"]
        for row in record["roster"]
        if row["outcome"] == "reported"
    ]


def test_a_site_that_stands_still_holds_nobody_up_and_its_stale_update_counts_after_a_kill_of_the_server(
    federation: Federation,
) -> None:
    federation.start()
    run = federation.submit()
    federation.until(lambda: any(client == SLOW for client, _, _ in counted(federation.shown(run))))
    federation.processes[f"client-{SLOW}"].send_signal(signal.SIGSTOP)
    stood = federation.shown(run)["rounds_done"]
    federation.until(lambda: federation.shown(run)["rounds_done"] >= stood + 4)
    federation.kill("server")
    federation.start_server()
    federation.processes[f"client-{SLOW}"].send_signal(signal.SIGCONT)

    def stale(shown: dict[str, Any]) -> list[tuple[int, int, int]]:
        return [(c, begun, number) for c, begun, number in counted(shown) if c == SLOW and number - begun >= 3]

    federation.until(lambda: bool(stale(federation.shown(run))))
    assert federation.operator("stop", run).returncode == 0
    shown = federation.wait(run, "stopped")
    numbers = [record["round"] for record in shown["rounds_list"]]
    assert numbers == list(range(len(numbers)))
    works = [(client, begun) for client, begun, _ in counted(shown)]
    assert len(works) == len(set(works))
    assert all(len([each for each in counted(shown) if each[2] == number]) == 2 for number in numbers[1:])
    assert stale(shown)[0][1] <= stood + 2
    assert not list((federation.home / "runs" / run / "incoming").iterdir())
