"""Processes that a measurement starts, speaks with in lines of JSON, and ends by their ids."""

import contextlib
import json
import os
import queue
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PATIENCE = 300.0
"""Seconds for whatever a process is to do next: the machine may be busy."""

SPARE_FILES = 200
"""Open files beside those for clients: the database, the logs, the libraries."""

GRACE = 15.0
"""Seconds that processes have to end by themselves."""


class BenchmarkError(Exception):
    """The measurement cannot be made; the text says why."""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def allow_connections(clients: int) -> None:
    """Raises this process's soft limit of open files to what so many clients need: a connection and an upload each.

    Raises BenchmarkError if the hard limit is lower.
    """
    count = 2 * clients + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count > hard:
        raise BenchmarkError(
            f"{clients} clients at one server need about {count} open files in its process, and {hard} are allowed"
            " (`ulimit -Hn`): raise that limit, or ask for fewer with --many"
        )
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def environment(**more: str) -> dict[str, str]:
    """One thread for each process's arithmetic, no proxy between processes of one machine, nothing over the network."""
    base = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    quiet = {"OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR", "HF_HUB_OFFLINE": "1"}
    return base | quiet | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"} | more


class Process:
    """A process with a log of its own."""

    def __init__(self, command: Sequence[str], log: Path, *, cwd: Path = ROOT, more: Mapping[str, str] | None = None):
        self.name, self._log = log.stem, log
        with log.open("ab") as errors:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if command[0] == sys.executable else errors,
                stderr=errors,
                cwd=cwd,
                env=environment(**(more or {})),
            )

    def failure(self, what: str) -> BenchmarkError:
        """An error with the end of the log."""
        return BenchmarkError(f"{self.name}: {what}\n{self._log.read_text(errors='replace')[-2000:]}")

    def ask_to_end(self) -> None:
        """Says so to it and to all that it has started, by their ids."""
        for each in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()

    def family(self) -> list[psutil.Process]:
        """It and all that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.popen.pid)
            return [process, *process.children(recursive=True)]
        return []

    def close(self) -> None:
        """After its end: nothing is left of it."""
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Child(Process):
    """A module of this package, run as a process, which hears and says lines of JSON; it ends when its input does."""

    def __init__(self, module: str, log: Path, order: Mapping[str, Any]) -> None:
        super().__init__([sys.executable, "-m", module], log)
        self._said: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.say(order)

    def _listen(self) -> None:
        for line in self.popen.stdout or ():
            self._said.put(line)
        self._said.put(b"")

    def say(self, what: Any) -> None:
        """One line to it."""
        if self.popen.stdin is None:
            raise self.failure("it has no input")
        try:
            self.popen.stdin.write(json.dumps(what).encode() + b"\n")
            self.popen.stdin.flush()
        except OSError as error:
            raise self.failure(f"it does not listen: {error}") from error

    def ask_to_end(self) -> None:
        """Its input ends."""
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()

    def hear(self, patience: float = PATIENCE) -> Any:
        """Its next line. Raises BenchmarkError if it ends, or says nothing for `patience` seconds."""
        try:
            line = self._said.get(timeout=patience)
        except queue.Empty:
            raise self.failure(f"nothing came of it in {patience:.0f} s") from None
        if not line:
            raise self.failure("it has ended before its time")
        return json.loads(line)


@contextmanager
def ended_at_last(processes: Sequence[Process]) -> Iterator[None]:
    """Ends `processes`, also those added meanwhile, whatever happens in the block."""
    try:
        yield
    finally:
        families = [each for process in processes for each in process.family()]
        for process in processes:
            process.ask_to_end()
        _, left = psutil.wait_procs(families, timeout=GRACE)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for process in processes:
            process.close()


def until(holds: Any, process: Process, patience: float = PATIENCE) -> None:
    """Waits until `holds()`; raises BenchmarkError if `process` ends before, or after `patience` seconds."""
    end = time.monotonic() + patience
    while not holds():
        if process.popen.poll() is not None or time.monotonic() > end:
            raise process.failure("it has ended" if process.popen.poll() is not None else "it takes too long")
        time.sleep(0.1)


def say(what: Any) -> None:
    """A child's line to its parent."""
    print(json.dumps(what), flush=True)


def hear() -> Any:
    """The parent's line to a child; the child ends where there is none any more."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit(0)
    return json.loads(line)
