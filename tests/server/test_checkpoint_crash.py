"""Processes that die, and disks that are full, at every instant of a commit."""

import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from fedlora.errors import StoreError
from fedlora.server.checkpoint import Checkpoint, commit, last_committed
from fedlora.server.records import RunInfo
from fedlora.server.store import RunStore

SCRIPT = Path(__file__).with_name("crash.py")


def crash(folder: Path, *arguments: object) -> None:
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, f"crash.py {arguments}:\n{ended.stderr}"


@pytest.mark.parametrize("before", [0, 3])
def test_killed_at_each_step(tmp_path: Path, before: int) -> None:
    """With `before` rounds committed, a process dies at a step of the next commit; what counts is what the row says."""
    crash(tmp_path, "steps", before)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Twenty lives of one run. Whatever was committed stays, and it is bit for bit what it should be."""
    crash(tmp_path, "random", time.time_ns() % 2**32, 20)  # the seed is in the message of a failure


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Files of this process cannot grow over `limit` bytes: writes beyond fail, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("limit", [0, 50, 400])
def test_a_full_disk_leaves_earlier_rounds_untouched(
    store: RunStore, run: RunInfo, samples: ModuleType, limit: int
) -> None:
    commit(store, run, samples.checkpoint(0))
    before = samples.tree(run.folder)
    with (
        file_size_limit(limit),
        pytest.raises(StoreError, match=r"about [\d,]+ bytes are needed and [\d,]+ bytes are free"),
    ):
        commit(store, run, samples.checkpoint(1))
    assert samples.tree(run.folder) == before
    assert store.last_round(run) == 0
    commit(store, run, samples.checkpoint(1))
    found = last_committed(store, run)
    assert found is not None
    samples.assert_same(found, samples.checkpoint(1))


def test_a_full_disk_under_the_database(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    """The files fit and the row does not: the round before still counts, and the message has the remedy."""
    commit(store, run, samples.checkpoint(0))
    with store._database.writes() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    store.close()
    limited = RunStore.open(store.folder)
    with limited._database._engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    big = samples.checkpoint(1)
    with pytest.raises(StoreError, match=r"fedlora\.db.*free some space.*bytes are free"):
        commit(limited, run, _with_long_reason(big))
    limited.close()
    found = last_committed(store, run)
    assert found is not None
    samples.assert_same(found, samples.checkpoint(0))
    with sqlite3.connect(store.folder / "fedlora.db") as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    plain.close()


def _with_long_reason(point: Checkpoint) -> Checkpoint:
    rows = tuple(replace(row, reason="x" * 50_000) for row in point.record.roster)
    return replace(point, record=replace(point.record, roster=rows))
