"""What is done to a fedlora process from inside, so that it dies or suffers at a known instant; then its command runs.

    python -m benchmarks.faults_harm client run …      with FAULT_HARM='{"clock": 3600}' in the environment

The nursery (`benchmarks.faults_nursery`) uses `install` in the processes that it starts. Nothing here is in fedlora.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "FAULT_HARM"
IMPORTS = (
    "fedlora.cli.app",
    "fedlora.simulations.simulate",
    "fedlora.server.daemon",
    "fedlora.client.daemon",
    "transformers.models.bert.modeling_bert",
    "flwr_datasets.partitioner",
)
"""What the processes need that takes long."""


@dataclass(frozen=True)
class Harm:
    """What is to happen; the defaults: nothing.

    kill_at_step: a named step of a checkpoint, and the how-many-th time. kill_in_training: after that many steps of
    training. kill_in_upload: after that many chunks. full_at_sending: no byte more fits on the disk from the instant
    when the first answer is about to leave. slow: seconds that a step of training takes longer. chunk, heartbeat: of
    the link, bytes and seconds. aged: hours by which certificates are dated back. lost: the (round, client) pairs that
    a simulation does without. clock: seconds by which the process's clock is ahead.
    """

    kill_at_step: tuple[str, int] | None = None
    kill_in_training: int = 0
    kill_in_upload: int = 0
    full_at_sending: bool = False
    slow: float = 0.0
    chunk: int = 0
    heartbeat: float = 0.0
    aged: float = 0.0
    lost: tuple[tuple[int, int], ...] = ()
    clock: float = 0.0

    def to_json(self) -> str:
        """For `from_json`, in another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Harm":
        """What `to_json` wrote."""
        found = json.loads(text)
        step = found["kill_at_step"]
        pairs = tuple((int(number), int(client)) for number, client in found["lost"])
        return cls(**{**found, "kill_at_step": step and (str(step[0]), int(step[1])), "lost": pairs})


def install(harm: Harm) -> None:
    """Does it to this process."""
    for field, value in asdict(harm).items():
        if value:
            _INSTALLERS[field](value)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_step(asked: tuple[str, int]) -> None:
    from fedlora.server import checkpoint

    step, left = asked

    def passed(name: str) -> None:
        nonlocal left
        left -= name == step
        if left == 0:
            _die()

    checkpoint.passed = passed


def _after_each_step(done: Callable[[int], None]) -> None:
    """Lets `done` be called with the number of steps that were trained."""
    from fedlora.training import local

    checked, count = local._finite, 0

    def finite(*arguments: Any) -> float:
        nonlocal count
        count += 1
        done(count)
        return checked(*arguments)

    local._finite = finite


def _kill_in_training(steps: int) -> None:
    _after_each_step(lambda count: _die() if count == steps else None)


def _slow(seconds: float) -> None:
    _after_each_step(lambda _: time.sleep(seconds))


def _kill_in_upload(chunks: int) -> None:
    from fedlora.link import client

    writes, count = client._write, 0

    class Counting:
        """A stream that dies with its process."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def write(self, frame: Any) -> None:
            nonlocal count
            await self.stream.write(frame)
            count += frame.WhichOneof("said") == "chunk"
            if count == chunks:
                _die()

    client._write = lambda stream, outgoing: writes(Counting(stream), outgoing)


def _full_at_sending(asked: bool) -> None:
    from fedlora.client.handler import SiteHandler

    sending, full = SiteHandler.sending, not asked

    def fills(self: SiteHandler, *arguments: Any) -> None:
        nonlocal full
        if not full:
            full = True
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        sending(self, *arguments)

    SiteHandler.sending = fills  # type: ignore[method-assign]


def _limit(name: str) -> Callable[[Any], None]:
    def sets(value: Any) -> None:
        from fedlora.link import limits

        setattr(limits, name, value)

    return sets


def _aged(hours: float) -> None:
    from datetime import timedelta

    from fedlora.identity import building

    building._SKEW = timedelta(hours=hours)


def _lost(pairs: Iterable[tuple[int, int]]) -> None:
    from fedlora.server.flower_strategy import FlowerStrategy

    aggregate, missing = FlowerStrategy.aggregate_train, set(map(tuple, pairs))

    def without(self: FlowerStrategy, server_round: int, replies: Any) -> Any:
        there = [reply for reply in replies if (server_round, self._asked[reply.metadata.src_node_id]) not in missing]
        return aggregate(self, server_round, there)

    FlowerStrategy.aggregate_train = without  # type: ignore[method-assign]


def _clock(seconds: float) -> None:
    """The clocks of fedlora's Python code, where no compiler makes `faults_clock.c`, which moves those of TLS too."""
    import datetime
    import importlib

    for name in IMPORTS:
        importlib.import_module(name)
    real, measured = datetime.datetime, time.time

    class Skewed(real):  # type: ignore[misc, valid-type]
        """A datetime whose now is another one."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.now(tz) + datetime.timedelta(seconds=seconds)

    time.time = lambda: measured() + seconds
    for name, module in list(sys.modules.items()):
        if name.startswith("fedlora.") and getattr(module, "datetime", None) is real:
            module.datetime = Skewed  # type: ignore[attr-defined]


_INSTALLERS: dict[str, Callable[[Any], None]] = {
    "kill_at_step": _kill_at_step,
    "kill_in_training": _kill_in_training,
    "kill_in_upload": _kill_in_upload,
    "full_at_sending": _full_at_sending,
    "slow": _slow,
    "chunk": _limit("CHUNK"),
    "heartbeat": _limit("HEARTBEAT"),
    "aged": _aged,
    "lost": _lost,
    "clock": _clock,
}


def main() -> None:
    """The command."""
    install(Harm.from_json(os.environ[VARIABLE]))
    from fedlora.cli.__main__ import main as fedlora

    sys.argv[0] = "fedlora"
    fedlora()


if __name__ == "__main__":
    main()
