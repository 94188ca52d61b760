"""Kills whole runs and resumes them; run by test_kill.py in a process of its own.

`lives.py FOLDER CONFIG steps` kills a run at each named step of a commit, in the first, a middle and the last round;
`lives.py FOLDER CONFIG random SEED COUNT` kills runs at COUNT random moments. Every life is a fork of this process,
which has everything imported, and dies by SIGKILL or ends. Each run is then resumed, and must leave the bits of an
unbroken run. Prints one line a trial; exits with 0 if every check held.
"""

import hashlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from fedlora.config.schema import RunConfig
from fedlora.server import checkpoint
from fedlora.server.records import RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, resume, run


def live(work: Callable[[], object]) -> int:
    """Starts `work` in a fork and returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def in_store(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"store": folder})


def go_on(config: RunConfig) -> None:
    """Resumes the store's run, or begins it if it was killed before it was entered."""
    with RunStore.open(config.store) as store:
        runs = store.list()
        if runs and runs[0].status is not RunStatus.FINISHED:
            resume(store, runs[0], Watch())
        elif not runs:
            run(config, Watch())


def finish(config: RunConfig) -> str:
    """Lets the run end, and returns the digest of what it left."""
    _, status = os.waitpid(live(lambda: go_on(config)), 0)
    assert status == 0, f"the resumed run ended with status {status}"
    with RunStore.open(config.store) as store:
        (info,) = store.list()
        assert info.status is RunStatus.FINISHED
        assert info.rounds_done == config.federation.rounds
        assert [record.round for record in store.history(info).rounds] == list(range(config.federation.rounds + 1))
    last = checkpoint.round_folder(info.folder, config.federation.rounds)
    files = [info.folder / "adapter" / "adapter_model.safetensors", *sorted(last.rglob("*.safetensors"))]
    assert len(files) >= 3
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def killed_at(step: str, times: int, config: RunConfig) -> None:
    """Runs until `step` of a commit is passed for the `times`-th time, then dies."""
    left = times

    def passed(name: str) -> None:
        nonlocal left
        left -= name == step
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.passed = passed
    run(config, Watch())


def was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"the run ended with status {status}"
    return status != 0


def kill_at_steps(folder: Path, config: RunConfig, expected: str) -> None:
    for step in checkpoint.STEPS:
        for times in (1, 2, config.federation.rounds + 1):
            mine = in_store(config, folder / f"{step}-{times}")
            assert was_killed(live(lambda mine=mine, step=step, times=times: killed_at(step, times, mine)))
            assert finish(mine) == expected, f"killed at {step!r} for the {times}. time: other bits"
            print(f"killed at {step!r} of commit {times}: same bits", flush=True)


def kill_at_random(folder: Path, config: RunConfig, expected: str, length: float, seed: int, count: int) -> None:
    draws = random.Random(seed)
    for trial in range(count):
        mine = in_store(config, folder / f"trial-{trial}")
        moment = draws.uniform(0, length)
        child = live(lambda mine=mine: go_on(mine))
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        killed = was_killed(child)
        assert finish(mine) == expected, f"seed {seed}, trial {trial}, killed after {moment:.3f} s: other bits"
        print(f"trial {trial}: {'killed' if killed else 'over'} after {moment:.3f} s: same bits", flush=True)


def main() -> None:
    folder, config = Path(sys.argv[1]), RunConfig.model_validate_json(Path(sys.argv[2]).read_text())
    torch.set_num_threads(1)
    began = time.monotonic()
    whole = in_store(config, folder / "whole")
    expected = finish(whole)
    length = time.monotonic() - began
    assert finish(in_store(config, folder / "again")) == expected, "two unbroken runs differ"
    if sys.argv[3] == "steps":
        kill_at_steps(folder, config, expected)
    else:
        seed, count = int(sys.argv[4]), int(sys.argv[5])
        print(f"seed {seed}, {count} moments within {length:.2f} s", flush=True)
        kill_at_random(folder, config, expected, length, seed, count)


if __name__ == "__main__":
    main()
