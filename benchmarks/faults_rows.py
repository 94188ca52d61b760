"""The faults, one row each: processes that die or sleep, and who comes twice."""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.faults_harm import Harm
from benchmarks.faults_judge import Case, nothing
from benchmarks.faults_world import OVER, World
from fedlora.errors import ExitCode
from fedlora.server.checkpoint import STEPS

ROUNDS = 6
WITHOUT_ONE = ("federation.release_few=true", f"federation.rounds={2 * ROUNDS}")
"""For runs that go on with two of three sites."""

STRATEGIES = ("strategy=fedavg", "strategy=fed_sb")
SERVER_RANDOM, SERVER_STEPS = "server killed at a random instant", "server killed at each step of a checkpoint"
SERVER_PRIVATE = "server killed in a run under local DP"
ASKED = "asked to end (SIGTERM) in the middle of a round, then started again"
IDLE, TRAINING, UPLOADING = (f"client killed while {doing}" for doing in ("idle", "training", "uploading"))
AHEAD, BEHIND = "client's clock an hour ahead", "client's clock an hour behind"
TWINS, STOPPED = "two clients with one identity", "client stopped for longer than federation.absence, then continued"


def server_random(count: int, seed: int, length: float) -> Iterator[Case]:
    """Kills at instants drawn evenly from a run's `length` in seconds."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    for number in range(count):
        moment = draw.uniform(0.0, length)
        overrides = (STRATEGIES[number % 2], f"federation.rounds={ROUNDS}")
        yield Case(SERVER_RANDOM, f"after {moment:.2f} s", partial(_kill_server_after, moment), overrides)


def _kill_server_after(moment: float, world: World, _: str) -> str:
    time.sleep(moment)
    status = world.kill("server")
    world.start_server()
    return "" if status == -signal.SIGKILL else f"the server ended with {status}"


def server_steps(times: tuple[int, ...]) -> Iterator[Case]:
    """Kills at each step of the `times`-th commits, counted from each life of the server: all steps in one run."""
    for count in times:
        rounds = f"federation.rounds={ROUNDS * count + len(STEPS)}"
        yield Case(SERVER_STEPS, f"commit {count} of each life", partial(_kill_at_steps, count), (rounds,), _arm(count))


def _arm(count: int) -> "partial[None]":
    return partial(_restart_to_die, STEPS[0], count)


def _restart_to_die(step: str, count: int, world: World) -> None:
    if "server" in world.processes:
        world.kill("server")
    world.harms["server"] = Harm(kill_at_step=(step, count))
    world.start_server()


def _kill_at_steps(count: int, world: World, _: str) -> str:
    for step, following in zip(STEPS, [*STEPS[1:], None], strict=True):
        status = world.fallen("server")
        if status != -signal.SIGKILL:
            raise AssertionError(f"the server was to die at {step!r} and ended with {status}")
        if following is not None:
            _restart_to_die(following, count, world)
    world.start_server()
    return f"{len(STEPS)} kills"


def server_private(count: int, seed: int) -> Iterator[Case]:
    """Kills while clients train with noise: what they have made and paid for is sent again, and not made again."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    for _ in range(count):
        moment = draw.uniform(0.0, 1.5)
        yield Case(
            SERVER_PRIVATE,
            f"{moment:.2f} s after a round",
            partial(_kill_server_in_rounds, moment),
            ("privacy=dp", "privacy.epsilon=8", "privacy.rate=0.3", f"federation.rounds={ROUNDS}"),
            before=_open_ledgers,
            after=_close_ledgers,
            private=True,
        )


def _kill_server_in_rounds(moment: float, world: World, run: str) -> str:
    world.until_round(run, 1)
    return _kill_server_after(moment, world, run)


def _open_ledgers(world: World) -> None:
    for number in range(world.sites):
        ledger = world.site(number) / "ledgers" / "site"
        if not ledger.exists():
            world.run("ledger", "create", str(ledger), "--data", "everything", "--epsilon", "1000")
        world.write_policy(number, privacy={"require": "dp", "epsilon_run": 8.0})


def _close_ledgers(world: World, _: str) -> None:
    for number in range(world.sites):
        world.write_policy(number)


def asked_to_end() -> Iterator[Case]:
    """Both end well: the server gives its round up, the client finishes what it has in hand."""
    slow = partial(restart_client, 1, Harm(slow=0.4))
    rounds = (f"federation.rounds={ROUNDS}",)
    yield Case(ASKED, "server", partial(_ask_to_end, "server"), rounds, before=slow)
    yield Case(ASKED, "client-1", partial(_ask_to_end, "client-1"), rounds, before=slow)


def _ask_to_end(name: str, world: World, run: str) -> str:
    world.until_round(run, 1)
    status = world.kill(name, signal.SIGTERM)
    if status != 0:
        raise AssertionError(f"{name} ended with {status}")
    world.mend()
    return f"{name} ended with exit code 0"


def client_idle(count: int) -> Iterator[Case]:
    """A client dies before the run asks it for anything, and comes back while its round waits."""
    for number in range(count):
        name = f"client-{number % 3}"
        yield Case(IDLE, name, partial(_bring_back, name), before=partial(_kill_idle, name))


def _kill_idle(name: str, world: World) -> None:
    world.kill(name)


def _bring_back(name: str, world: World, run: str) -> str:
    world.until(lambda: world.shown(run)["status"] == "running")
    world.start_client(int(name[-1]))
    return ""


def client_training(count: int) -> Iterator[Case]:
    """A client dies between two steps of training."""
    for number in range(count):
        harm = Harm(kill_in_training=1 + 2 * number)
        yield _dying(TRAINING, number % 3, harm, f"client-{number % 3}, in round {1 + number}")


def client_uploading(count: int) -> Iterator[Case]:
    """A client dies after some of the chunks of an upload."""
    for number in range(count):
        harm = Harm(kill_in_upload=2 + 5 * number, chunk=512)
        yield _dying(UPLOADING, number % 3, harm, f"client-{number % 3}, after {2 + 5 * number} chunks")


def _dying(row: str, number: int, harm: Harm, name: str) -> Case:
    return Case(
        row,
        name,
        partial(_comes_back, number),
        (f"federation.rounds={ROUNDS}",),
        before=partial(restart_client, number, harm),
    )


def restart_client(number: int, harm: Harm, world: World) -> None:
    """A client anew, which will be harmed; returns when it is connected."""
    world.kill(f"client-{number}")
    world.until(lambda: world.connected() == world.sites - 1)
    world.harms[f"client-{number}"] = harm
    world.start_client(number)
    world.until_connected(world.sites)


def _comes_back(number: int, world: World, _: str) -> str:
    status = world.fallen(f"client-{number}")
    if status != -signal.SIGKILL:
        raise AssertionError(f"client {number} was to be killed and ended with {status}")
    world.start_client(number)
    return ""


def clocks() -> Iterator[Case]:
    """A client lives in another hour."""
    for row, number, seconds in ((AHEAD, 0, 3600.0), (BEHIND, 1, -3600.0)):
        yield Case(
            row,
            f"client-{number}",
            nothing,
            (f"federation.rounds={ROUNDS}", "federation.timeout=60"),
            before=partial(_skew, number, seconds),
            after=partial(_unskew, number),
        )


def _skew(number: int, seconds: float, world: World) -> None:
    world.kill(f"client-{number}")
    world.until(lambda: world.connected() == world.sites - 1)
    world.start_skewed(number, seconds)
    world.until_connected(world.sites)


def _unskew(number: int, world: World, _: str) -> None:
    world.kill(f"client-{number}")


def twins() -> Iterator[Case]:
    """A copy of a home is started beside it; then the copy takes the place of the first, which comes back."""
    yield Case(TWINS, "a copy beside the first", _copy_beside, (f"federation.rounds={ROUNDS}",), after=_no_copy)
    yield Case(TWINS, "a copy in place of the first", _copy_instead, (f"federation.rounds={ROUNDS}",), after=_no_copy)


def _copy(world: World) -> str:
    """Starts a client from a copy of site 0's home; returns its name."""
    home = world.folder / "site-0-copy"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(world.site(0), home, ignore=shutil.ignore_patterns(".lock", ".holder.json"))
    world.spawn("client-copy", "client", "run", "--home", str(home), "--verbose")
    return "client-copy"


def _copy_beside(world: World, _: str) -> str:
    return _turned_away(world, _copy(world))


def _turned_away(world: World, name: str) -> str:
    status = world.fallen(name)
    if status != ExitCode.IDENTITY:
        raise AssertionError(f"the second client ended with {status}, not {ExitCode.IDENTITY:d}{world.logs()}")
    return f"the second is turned away (exit code {status}: connected already, from another process)"


def _copy_instead(world: World, _: str) -> str:
    world.kill("client-0")
    _copy(world)
    world.until_connected(world.sites)
    world.start_client(0)
    return _turned_away(world, "client-0")


def _no_copy(world: World, _: str) -> None:
    if "client-copy" in world.processes:
        world.kill("client-copy")


def stopped(count: int) -> Iterator[Case]:
    """A client sleeps in the middle of its training; it is missed, and comes back when it goes on."""
    for number in range(count):
        yield Case(
            STOPPED,
            f"client-{number % 3}",
            partial(_sleep, number % 3),
            ("federation.absence=1", *WITHOUT_ONE),
            before=partial(restart_client, number % 3, Harm(slow=0.3)),
            after=partial(ends_well, number % 3),
            missing=frozenset({number % 3}),
            must_miss=True,
        )


def _sleep(number: int, world: World, run: str) -> str:
    world.until_round(run, 1)
    process = world.processes[f"client-{number}"]
    process.send_signal(signal.SIGSTOP)
    until_missed(world, run, number)
    process.send_signal(signal.SIGCONT)
    return ""


def missed(world: World, run: str, number: int) -> list[int]:
    """The rounds that a client is not in."""
    return [
        found["round"]
        for found in world.shown(run)["rounds_list"]
        for row in found["roster"]
        if row["client"] == number and row["outcome"] != "reported"
    ]


def until_missed(world: World, run: str, number: int) -> None:
    """Until a client is not in a round, or the run has ended."""
    world.until(lambda: bool(missed(world, run, number)) or world.shown(run)["status"] in OVER)


def ends_well(number: int, world: World, _: str) -> None:
    """Whoever was away is there again, with nothing in hand: it ends when it is asked to."""
    world.until_connected(world.sites)
    status = world.kill(f"client-{number}", signal.SIGTERM)
    if status != 0:
        raise AssertionError(f"client {number} ended with {status}")
