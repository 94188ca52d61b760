"""Flower's simulation on Ray: `python -m benchmarks.peers.flower FOLDER SETTINGS`, in an environment that has Ray.

Writes one line of JSON: seconds of each round after the first.
"""

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.workload import Settings, Trainer, Workload

FOLDER, SETTINGS = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_MEMORY_MONITOR": "1"}
_kept: dict[str, Trainer] = {}
client_app = ClientApp()


def trainer() -> Trainer:
    """Of this process: an actor keeps it from one client to the next."""
    if "one" not in _kept:
        _kept["one"] = Trainer(Workload.read(FOLDER), SETTINGS)
    return _kept["one"]


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client."""
    state = message.content["arrays"].to_torch_state_dict()
    found = trainer().train(int(context.node_config["partition-id"]), dict(state))
    content = RecordDict({"arrays": ArrayRecord(found), "metrics": MetricRecord({"num-examples": 8.0})})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """Notes when each round begins."""

    moments: list[float]

    def configure_train(self, *arguments: Any, **more: Any) -> Any:
        """As FedAvg's."""
        self.moments.append(time.perf_counter())
        return super().configure_train(*arguments, **more)


def serve(grid: Grid, context: Context) -> None:
    """All rounds; every client takes part in each."""
    del context
    strategy = Timed(fraction_train=1.0, min_train_nodes=1, fraction_evaluate=0.0, min_available_nodes=1)
    strategy.moments = []
    started = {"grid": grid, "initial_arrays": ArrayRecord(trainer().start()), "num_rounds": SETTINGS.rounds}
    strategy.start(**started, train_config=ConfigRecord({"lr": 0.1}))
    moments = [*strategy.moments, time.perf_counter()]
    print(
        "RESULT " + json.dumps([after - before for before, after in pairwise(moments[1:])]),
        flush=True,
    )


if __name__ == "__main__":
    os.environ.update(QUIET)
    server_app = ServerApp()
    server_app.main()(serve)
    gpus = 0 if SETTINGS.device == "cpu" else 1
    resources = {"client_resources": {"num_cpus": SETTINGS.threads, "num_gpus": gpus / SETTINGS.workers}}
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=Workload.read(FOLDER).shape.clients,
        backend_config={
            **resources,
            "init_args": {"num_cpus": SETTINGS.workers, "num_gpus": gpus, "include_dashboard": False},
        },
    )
