"""A server that serves an honest client while another one attacks it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import Message

from fedlora.link import limits
from fedlora.link.grid import LinkGrid
from fedlora.link.host import LinkHost
from fedlora.link.service import LinkService
from fedlora.link.v1.link_pb2 import Offer
from fedlora.server.admission import LOST_CODE
from tests.link.raw import Raw, hello, pair, served
from tests.link.world import Daemon, Scripted, World, eventually, message, values

SITES = ["site-0", "site-1"]


@dataclass
class Siege:
    """A server with an honest client, site-0, and room for an offender, site-1."""

    world: World
    host: LinkHost
    service: LinkService
    honest: Scripted
    grid: LinkGrid
    rounds: int = 0
    shown: tuple[bytes, bytes] = (b"", b"")

    def forgive(self) -> None:
        """The next offender is another one, as far as its test goes."""
        self.service._refusals = limits.Recent(limits.REFUSALS, limits.REFUSAL_WINDOW)

    def raw(self, **how: Any) -> Raw:
        """A connection of the offender's."""
        return Raw(self.world, "site-1", shown=self.shown, **how)

    def offender(self, **how: Any) -> Raw:
        """It is connected; whatever was there before is gone."""
        eventually(lambda: "site-1" not in self.host.hub.connected())
        raw = self.raw(**how)
        raw.say(hello())
        eventually(lambda: "site-1" in self.host.hub.connected())
        return raw

    def inbox(self) -> list[str]:
        """The names of the files that the server keeps of the run's answers."""
        return sorted(path.name for path in (self.world.folder / "run-1" / "incoming").iterdir())

    def ask(self, *clients: int, **how: Any) -> Callable[[], list[Message]]:
        """Begins a round; what it returns waits for the replies."""
        self.rounds += 1
        numbers, timeout = how.pop("numbers", 32), how.pop("timeout", None)
        collect = self.grid.ask([message(i, self.rounds, numbers=numbers) for i in clients], timeout)
        return lambda: list(collect())

    def check_honest(self) -> None:
        """A whole round of the honest client, with the honest result; then nothing of anybody is left."""
        assert values(self.ask(0)()) == {2: self.rounds}
        self.grid.committed(self.rounds)
        assert self.inbox() == []

    @contextmanager
    def round(self, **how: Any) -> Iterator[tuple[Raw, Offer]]:
        """A round of both, for the block; after it the offender has gone and nothing of it counts."""
        with self.offender(**how) as raw:
            collect = self.ask(0, 1)
            offer = raw.hear("offer") if how.get("reads", True) else self.open_offer("site-1")
            yield raw, offer
        honest, lost = collect()
        assert values([honest]) == {2: self.rounds}
        assert lost.has_error()
        assert lost.error.code == LOST_CODE
        assert f"{offer.work}.answer" not in self.inbox()
        self.check_honest()

    def open_offer(self, site: str) -> Offer:
        """What the server asks of a site now."""
        (work,) = [work for work in self.host.hub.works.values() if work.site == site]
        return work.offer()


@contextmanager
def besieged(world: World, **doors: Any) -> Iterator[Siege]:
    """A siege of a server with these doors."""
    with served(world, **doors) as (host, service), _honest(world, host) as honest:
        grid = world.grid(host, SITES, absence=0.2)
        yield Siege(world, host, service, honest, grid, shown=pair(world, "site-1"))


@contextmanager
def _honest(world: World, host: LinkHost) -> Iterator[Scripted]:
    honest = Scripted(0)
    daemon = Daemon(world.dial("site-0"), honest, world.folder / "answers")
    try:
        eventually(lambda: "site-0" in host.hub.connected())
        yield honest
    finally:
        daemon.stop()
