"""Processes that start at once: one that has everything imported forks a new one for each request.

Importing torch takes seconds, and the measurement starts hundreds of processes. Each is a process of its own with its
own id, files, signals and end; `python -m benchmarks.faults_nursery FD` is the one that they are forked from.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults_harm import IMPORTS, Harm, install

PATIENCE = 120.0


class Child:
    """A process that was forked, with what is used of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        if not self._ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """By its id, if it runs."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)

    def end(self, status: int) -> None:
        """It has ended."""
        self.returncode = status
        self._ended.set()


class Nursery:
    """Starts processes. environment: what they have in common; it is there before anything is imported."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._line, theirs = socket.socketpair()
        command = [sys.executable, "-m", "benchmarks.faults_nursery", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, env=dict(environment), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._children: dict[int, Child] = {}
        self._begun: list[Child] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], out: Path, error: Path, folder: Path, harm: Harm
    ) -> Child:
        """A new `fedlora` process with `arguments`, one call at a time."""
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "out": str(out),
            "error": str(error),
            "folder": str(folder),
            "harm": harm.to_json(),
        }
        self._line.sendall(json.dumps(request).encode() + b"\n")
        with self._changed:
            if not self._changed.wait_for(lambda: self._begun, PATIENCE):
                raise TimeoutError(f"no process was started within {PATIENCE:.0f} s")
            return self._begun.pop()

    def close(self) -> None:
        """Ends the nursery and what it started."""
        self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()
        self._process.wait(PATIENCE)

    def _listen(self) -> None:
        with self._line.makefile("r") as lines, suppress(OSError, ValueError):
            for line in lines:
                self._note(json.loads(line))

    def _note(self, said: Mapping[str, int]) -> None:
        with self._changed:
            if "status" in said:
                self._children.pop(said["pid"]).end(said["status"])
                return
            self._children[said["pid"]] = child = Child(said["pid"])
            self._begun.append(child)
            self._changed.notify_all()


class _Forking:
    """The nursery's own side."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._alive = line, set[int]()

    def run(self) -> dict[str, Any] | None:
        """Forks for each request until the other side is gone. In a child it returns the child's request."""
        waiting = b""
        while True:
            readable, _, _ = select.select([self._line], [], [], 0.02)
            self._reap()
            if not readable:
                continue
            block = self._line.recv(1 << 16)
            if not block:
                return self._end()
            *lines, waiting = (waiting + block).split(b"\n")
            for line in lines:
                if (pid := os.fork()) == 0:
                    self._line.close()
                    found: dict[str, Any] = json.loads(line)
                    return found
                self._alive.add(pid)
                self._say({"pid": pid})

    def _reap(self) -> None:
        for pid in list(self._alive):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._alive.discard(pid)
                self._say({"pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, said: Mapping[str, int]) -> None:
        with suppress(OSError):
            self._line.sendall(json.dumps(said).encode() + b"\n")

    def _end(self) -> None:
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def become(request: Mapping[str, Any]) -> None:
    """Turns this process into the one that was asked for; ends with SystemExit."""
    for number, path in ((1, request["out"]), (2, request["error"])):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    install(Harm.from_json(request["harm"]))
    sys.argv = ["fedlora", *request["arguments"]]
    from fedlora.cli.__main__ import main as fedlora

    fedlora()


def main() -> None:
    """The nursery."""
    import gc
    import importlib
    import logging

    line = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTS:
        importlib.import_module(name)
    for handler in logging.getLogger().handlers[:]:  # a library's, which would keep the daemons from theirs
        logging.getLogger().removeHandler(handler)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: whoever uses the nursery ends it
    request = _Forking(line).run()
    if request is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        become(request)


if __name__ == "__main__":
    main()
