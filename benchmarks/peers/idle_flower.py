"""Flower's simulation with clients that train nothing: `python -m benchmarks.peers.idle_flower SETTINGS`."""

import os
import sys
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.idle import STEP, WARM, Stopwatch, arrays, settings_of

SETTINGS = settings_of(sys.argv)
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_MEMORY_MONITOR": "1"}
client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client."""
    del context
    found = {name: Array(array.numpy() + np.float32(STEP)) for name, array in message.content["arrays"].items()}
    content = RecordDict({"arrays": ArrayRecord(found), "metrics": MetricRecord({"num-examples": 8.0})})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """Notes when each round begins."""

    watch: Stopwatch

    def configure_train(self, *arguments: Any, **more: Any) -> Any:
        """As FedAvg's."""
        self.watch.mark()
        return super().configure_train(*arguments, **more)


def serve(grid: Grid, context: Context) -> None:
    """All rounds; every client takes part in each."""
    del context
    strategy = Timed(fraction_train=1.0, min_train_nodes=1, fraction_evaluate=0.0, min_available_nodes=SETTINGS.cohort)
    strategy.watch = Stopwatch()
    first = ArrayRecord({name: Array(array) for name, array in arrays().items()})
    rounds = SETTINGS.rounds + WARM
    strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds, train_config=ConfigRecord({"lr": 0.1}))
    strategy.watch.mark()
    strategy.watch.tell()


if __name__ == "__main__":
    os.environ.update(QUIET)
    server_app = ServerApp()
    server_app.main()(serve)
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=SETTINGS.cohort,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": SETTINGS.workers, "include_dashboard": False},
        },
    )
