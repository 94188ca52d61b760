"""Kills processes that commit rounds, and checks what they leave behind; run by test_checkpoint_crash.py.

`crash.py FOLDER steps BEFORE` kills at each of STEPS after BEFORE committed rounds; `crash.py FOLDER random SEED LIVES`
kills one run at LIVES random moments. Each life is a fork of this process, so that it costs milliseconds. Exits with 0
if every check held.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import samples

from fedlora.server import checkpoint
from fedlora.server.records import RunInfo
from fedlora.server.store import RunStore


def fork_life(folder: Path, run_id: str, passed: Callable[[str], None]) -> int:
    """Starts a process that resumes the run and commits rounds until it dies; returns its id once it has begun."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        return child
    try:
        checkpoint.passed = passed
        commit_for_ever(folder, run_id, lambda: os.write(writing, b"x"))
    finally:
        traceback.print_exc()
        os._exit(70)


def commit_for_ever(folder: Path, run_id: str, ready: Callable[[], object]) -> None:
    store = RunStore.open(folder)
    run = store.get(run_id)
    with store.lock(run):
        found = checkpoint.last_committed(store, run)
        number = 0 if found is None else found.round + 1
        ready()
        while True:
            checkpoint.commit(store, run, samples.checkpoint(number))
            number += 1


def check_killed(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the process ended by itself with status {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def check_left(store: RunStore, run: RunInfo) -> int:
    """What a dead process left loads, bit for bit, and nothing else is there. Returns the last round, or -1."""
    with store.lock(run):
        found = checkpoint.last_committed(store, run)
    last = -1 if found is None else found.round
    if found is not None:
        samples.assert_same(found, samples.checkpoint(last))
    assert checkpoint.saved_rounds(run.folder) == list(range(last + 1))
    assert list((run.folder / "checkpoints").glob(".*")) == []
    assert [record.round for record in store.history(run).rounds] == list(range(last + 1))
    return last


def kill_at_steps(folder: Path, before: int) -> None:
    for step in checkpoint.STEPS:
        with RunStore.open(folder) as store:
            run = store.create(samples.config(), name=step)
            for number in range(before):
                checkpoint.commit(store, run, samples.checkpoint(number))

        def passed(now: str, fatal: str = step) -> None:
            if now == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        check_killed(fork_life(folder, run.id, passed))
        with RunStore.open(folder) as store:
            last = check_left(store, run)
            assert last == (before if step == "row-committed" else before - 1), f"round {last} after {step}"
            checkpoint.commit(store, run, samples.checkpoint(last + 1))


def kill_at_random(folder: Path, seed: int, lives: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    with RunStore.open(folder) as store:
        run = store.create(samples.config(), name="random")
        begun = time.monotonic()
        checkpoint.commit(store, run, samples.checkpoint(0))
        one_commit = time.monotonic() - begun
    last = 0
    for _ in range(lives):
        child = fork_life(folder, run.id, lambda step: None)
        time.sleep(draw.uniform(0, 3 * one_commit))
        os.kill(child, signal.SIGKILL)
        check_killed(child)
        with RunStore.open(folder) as store:
            reached = check_left(store, run)
        assert reached >= last, f"round {last} was committed, and {reached} is left"
        last = reached
    assert last >= 1, "no life was long enough to commit a round"


if __name__ == "__main__":
    work = {"steps": kill_at_steps, "random": kill_at_random}[sys.argv[2]]
    work(Path(sys.argv[1]), *map(int, sys.argv[3:]))
