"""A simulation's process keeps the memory that a step gives back; whoever imports fedlora does not."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
import numpy as np
from fedlora.training.heap import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def allocated(times):
    before = faults()
    for _ in range(times):
        held = [np.ones(2**20, np.uint8) for _ in range(20)]
        del held
    return faults() - before

told = keep_memory() if sys.argv[1] == "kept" else None
allocated(2)
print(json.dumps({"told": told, "faults": allocated(10), "again": keep_memory() if told is not None else None}))
"""


def outcome(how: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's")
def test_memory_that_is_given_back_is_there_for_the_next_step() -> None:
    kept = outcome("kept")
    if not kept["told"]:
        pytest.skip("another C library")
    assert kept["again"] is True
    # 200 MiB in pages of 4 kB would be 51,200 faults; without being told, the library has thousands of them.
    assert kept["faults"] < 500
    assert outcome("as ever")["faults"] > 5000
