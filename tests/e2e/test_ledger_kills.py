"""A client that is killed between reservation, begin, release and send never spends what is not in its ledger."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIVES = Path(__file__).with_name("ledger_lives.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_fifty_kills_never_under_count(tmp_path: Path) -> None:
    command = [sys.executable, str(LIVES), str(tmp_path), str(time.time_ns() % 10**9), "50"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(done.stdout)  # the seed, for whoever reads a failure
    assert done.returncode == 0, done.stdout + done.stderr
    assert "honest held" in done.stdout
    assert "careless round" in done.stdout
