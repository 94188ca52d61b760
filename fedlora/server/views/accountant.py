"""Works out ε in a process of its own, which gives way to all others: `python -m fedlora.server.views.accountant`.

The run's own accounting needs torch; what shows runs must not wait for it, nor keep it in memory.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_MODULE = "fedlora.server.views.accountant"


def in_a_process(config: str, rounds: Sequence[int]) -> Iterator[tuple[int, float]]:
    """What `main` writes, in a process that gives way to all others.

    Raises ValueError with what it said if it fails, OSError if it cannot be started.
    """
    given = json.dumps({"config": json.loads(config), "rounds": list(rounds)})
    command = [sys.executable, "-m", _MODULE]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[3])
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 - this package's own module
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=surroundings, cwd=root
    ) as process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the process that works out ε has no pipes")
        process.stdin.write(given)
        process.stdin.close()
        for line in process.stdout:
            number, _, found = line.partition(" ")
            yield int(number), float(found)
        said = process.stderr.read()
    if process.returncode:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"its process ended with {process.returncode}: {last}")


def main() -> None:
    """Reads {"config", "rounds"} from stdin and writes a line "rounds ε" for each, as it is found."""
    os.nice(15)
    given = json.load(sys.stdin)
    from fedlora.config.schema import RunConfig

    config = RunConfig.model_validate(given["config"])
    find = _MODES[config.privacy.name](config)
    for rounds in given["rounds"]:
        sys.stdout.write(f"{rounds} {find(rounds)!r}\n")
        sys.stdout.flush()


def _local(config: Any) -> Callable[[int], float]:
    from fedlora.privacy.schedule import run_epsilon  # loads torch

    return lambda rounds: run_epsilon(config, rounds)


def _central(config: Any) -> Callable[[int], float]:
    from fedlora.privacy.central import central_mechanism  # loads torch

    return central_mechanism(config).spent


_MODES: Mapping[str, Callable[[Any], Callable[[int], float]]] = {"dp": _local, "central": _central}

if __name__ == "__main__":
    main()
