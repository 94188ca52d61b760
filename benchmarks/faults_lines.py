"""The faults of lines and disks, one row each."""

import random
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.faults_disk import LimitedDisk
from benchmarks.faults_harm import Harm
from benchmarks.faults_judge import Case, nothing
from benchmarks.faults_rows import ROUNDS, WITHOUT_ONE, ends_well, restart_client, until_missed
from benchmarks.faults_world import LAST, World
from benchmarks.unruly_proxy import Trouble

CUT_SHORT, CUT_LONG = "connection cut for 1 s", "connection cut for 60 s"
AWAY, SILENT = "one line cut for longer than federation.absence", "line silent, nobody told"
SPOILT, SLOW = "bytes truncated, turned or out of order on the way", "line slow"
SERVER_FULL, CLIENT_FULL = "server's disk full, then room again", "client's disk full, then room again"
LONG = (f"federation.rounds={2 * ROUNDS}",)


def cuts(count: int, seed: int, length: float) -> Iterator[Case]:
    """All lines are cut at a random instant, and no connection is taken for a second."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    for _ in range(count):
        moment = draw.uniform(0.0, length)
        yield Case(CUT_SHORT, f"after {moment:.2f} s", partial(_cut, moment, 1.0), LONG)
    yield Case(CUT_LONG, "all lines", partial(_cut, length / 2, 60.0), LONG)


def _cut(moment: float, seconds: float, world: World, _: str) -> str:
    time.sleep(moment)
    for proxy in world.proxies:
        proxy.refuse()
    time.sleep(seconds)
    for proxy in world.proxies:
        proxy.mend()
    return ""


def away() -> Iterator[Case]:
    """A client finishes its work while nobody hears it, and the others go on without it."""
    yield Case(
        AWAY,
        "client-1",
        partial(_cut_until_missed, 1),
        ("federation.absence=1", *WITHOUT_ONE),
        before=partial(restart_client, 1, Harm(slow=0.4)),
        after=partial(ends_well, 1),
        missing=frozenset({1}),
        must_miss=True,
    )


def _cut_until_missed(number: int, world: World, run: str) -> str:
    world.until_round(run, 1)
    world.proxies[number].refuse()
    until_missed(world, run, number)
    world.proxies[number].mend()
    return ""


def silent(seconds: float) -> Iterator[Case]:
    """Bytes stop, and neither side learns of it but by waiting."""
    yield Case(SILENT, f"{seconds:.0f} s", partial(_silence, seconds), LONG)


def _silence(seconds: float, world: World, run: str) -> str:
    world.until_round(run, 1)
    before = [proxy.connections for proxy in world.proxies]
    for proxy in world.proxies:
        proxy.silence()
    time.sleep(seconds)
    for proxy in world.proxies:
        proxy.mend()
    world.over(run)
    return f"{sum(proxy.connections for proxy in world.proxies) - sum(before)} new connections"


def slow() -> Iterator[Case]:
    """Each piece comes 0.2 s late."""
    yield Case(SLOW, "0.2 s", nothing, before=_delay)


def _delay(world: World) -> None:
    for proxy in world.proxies:
        proxy.delay(0.2)


def spoilt(count: int, seed: int) -> Iterator[Case]:
    """Bytes of one line are spoilt, at a random place; TLS must end the connection."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    for number in range(3 * count):
        how = ("truncate", "corrupt", "swap")[number % 3]
        upward, after = draw.random() < 0.5, draw.randrange(20_000)
        name = f"{how} after {after} bytes {'from' if upward else 'to'} client-1"
        yield Case(SPOILT, name, partial(_spoil, how, upward, after), LONG)


def _spoil(how: str, upward: bool, after: int, world: World, run: str) -> str:
    trouble, proxy = Trouble(how, after, upward), world.proxies[1]
    before = proxy.connections
    proxy.spoil(trouble)
    world.over(run)
    world.until(lambda: trouble.fired)  # heartbeats travel on
    world.until(lambda: proxy.connections > before)
    return f"{how}: noticed, connected anew"


def server_full(count: int, seed: int, length: float) -> Iterator[Case]:
    """The server's disk fills at a random instant and has room again after a random time."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    for number in range(count):
        moment, seconds = draw.uniform(0.0, length), draw.uniform(0.5, 4.0)
        limited = number % 2 == 1
        name = f"after {moment:.2f} s for {seconds:.1f} s, {'by a limit' if limited else 'the whole disk'}"
        yield Case(SERVER_FULL, name, partial(_fill_server, moment, seconds, limited), LONG)


def _fill_server(moment: float, seconds: float, limited: bool, world: World, run: str) -> str:
    time.sleep(moment)
    disk = LimitedDisk(lambda: world.pid("server")) if limited else world.disk("server")
    disk.fill()
    time.sleep(seconds)
    disk.free()
    return go_on(world, run, "free some space")


def go_on(world: World, run: str, reason: str) -> str:
    """Waits for the run's end; one that failed for `reason` is resumed, as its reason says."""
    shown = world.over(run)
    if shown["status"] != "failed":
        return "it went on by itself"
    if reason not in shown["reason"]:
        raise AssertionError(f"the reason is not that of the fault: {shown['reason']}")
    world.resume(run)
    return "failed, with the reason; resumed"


def client_full() -> Iterator[Case]:
    """One site's disk is full for a few rounds; or so that no quorum is left; or just when an update is to leave."""
    missing = frozenset({LAST})
    yield Case(
        CLIENT_FULL,
        "for some rounds",
        _free_after_failures,
        WITHOUT_ONE,
        before=_fill_client,
        missing=missing,
        must_miss=True,
    )
    yield Case(CLIENT_FULL, "without a quorum", _free_after_end, LONG, before=_fill_client)
    yield Case(
        CLIENT_FULL,
        "as an update leaves",
        _free_soon,
        WITHOUT_ONE,
        before=partial(restart_client, LAST, Harm(full_at_sending=True)),
        missing=missing,
    )


def _fill_client(world: World) -> None:
    world.disk(f"client-{LAST}").fill()


def _free_after_failures(world: World, run: str) -> str:
    until_missed(world, run, LAST)
    world.free()
    return ""


def _free_after_end(world: World, run: str) -> str:
    world.over(run)
    world.free()
    return go_on(world, run, f"client {LAST}: ")


def _free_soon(world: World, _: str) -> str:
    time.sleep(3.0)
    world.free()
    return ""
