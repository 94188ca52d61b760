"""The server app for Flower's own runtime: `flwr run . --run-config 'overrides="strategy=fed_sb federation.rounds=3"'`.

The same experiment, strategies, gate, checkpoints and results as `fedlora simulate`; Flower's nodes answer.
"""

import shlex

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora.config.compose import compose
from fedlora.simulations.simulate import Watch, run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Composes the experiment from the one declared key, `overrides`, and runs it on Flower's grid."""
    config = compose(shlex.split(str(context.run_config["overrides"])))
    run(config, Watch(), grid=grid)
