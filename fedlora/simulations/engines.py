"""The engines by name: each turns a client app and a configuration into a Flower Grid."""

from collections.abc import Callable, Mapping

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlora.config.schema import RunConfig
from fedlora.simulations.sequential import SequentialGrid


def sequential(config: RunConfig, app: ClientApp) -> Grid:
    """One virtual client after another in this process."""
    return SequentialGrid(app, config.federation.clients)


ENGINES: Mapping[str, Callable[[RunConfig, ClientApp], Grid]] = {"sequential": sequential}
"""`engine.name` → its maker."""
