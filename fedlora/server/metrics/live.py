"""The metrics of a server that runs: its store, its registry, its link, and the token in its home."""

from collections import Counter
from pathlib import Path

from fedlora.identity.registry import Registry
from fedlora.link.host import LinkHost
from fedlora.link.hub import Hub
from fedlora.server.metrics import TOKEN, make_metrics
from fedlora.server.metrics.collector import LinkState
from fedlora.server.operator.scrape import Scrape
from fedlora.server.operator.token import make_token
from fedlora.server.store import RunStore


def scrape_of(home: Path, store: RunStore, registry: Registry, host: LinkHost) -> Scrape:
    """What the operator's API gives to Prometheus; the token's file is made where there is none.

    Raises IdentityError and StoreError as `make_token` does.
    """
    text = make_metrics(store, registry.clients, lambda: host.call(_state(host.hub)))
    return Scrape(text, make_token(home / TOKEN))


async def _state(hub: Hub) -> LinkState:
    """Inside the link's loop: elsewhere clients may come and go while they are counted."""
    paused = {name: presence.state.paused for name, presence in hub.connected().items()}
    return LinkState(paused, Counter(work.run for work in hub.works.values() if not work.ended.done()))
