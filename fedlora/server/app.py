"""The server app for Flower's own runtime: `flwr run . --run-config 'overrides="strategy=fed_sb federation.rounds=3"'`.

The same experiment, strategies, gate, checkpoints and results as `fedlora simulate`; Flower's nodes answer.
`docs/flower.md` shows how to start it.
"""

import shlex
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedlora.config.compose import compose
from fedlora.errors import RunError
from fedlora.simulations.command import show_summary
from fedlora.simulations.progress import LiveProgress
from fedlora.simulations.simulate import Watch, run

NODES_TIMEOUT = 30.0
"""Seconds for Flower's nodes to register: its runtime starts the server app first."""
_POLL = 0.2

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Composes the experiment from the one declared key, `overrides`, and runs it on Flower's grid.

    What it shows goes to Flower's log. Raises FedloraError; Flower then ends the run as failed, with that text.
    """
    config = compose(shlex.split(str(context.run_config["overrides"])))
    wait_for_nodes(grid, config.federation.clients)
    console = Console()
    with LiveProgress(console) as progress:
        history = run(config, Watch((progress,)), grid=grid)
    show_summary(history, console)


def wait_for_nodes(grid: Grid, clients: int, timeout: float = NODES_TIMEOUT) -> None:
    """Returns as soon as the grid has a node for each client. Raises RunError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (nodes := len(list(grid.get_node_ids()))) < clients:
        if time.monotonic() >= deadline:
            raise RunError(
                f"Flower has {nodes} nodes after {timeout:.0f} s, but federation.clients={clients}: start as many"
                " (`num-supernodes` in --federation-config), or lower federation.clients"
            )
        time.sleep(_POLL)
