"""A simulation's process keeps the memory that a step gives back; whoever imports fedlora does not."""

import json
import subprocess
import sys
from pathlib import Path

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


LIMITED = """
import resource, sys
from pathlib import Path
from fedlora.training.heap import RESERVED, keep_memory
if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, 64 * 2**30))
size = lambda: int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
before = size()
print(keep_memory(), size() - before > RESERVED / 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's")
@pytest.mark.parametrize(("how", "reserved"), [("limited", "False"), ("free", "True")])
def test_addresses_that_are_rationed_are_not_reserved(how: str, reserved: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, how], capture_output=True, text=True, check=True)
    told, found = done.stdout.split()
    if told == "False" or (how == "free" and Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"):
        pytest.skip("another C library, or a system that counts addresses")
    assert found == reserved
