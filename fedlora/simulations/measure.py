"""The global model on a whole split."""

from collections.abc import Mapping

from fedlora.client.worker import Worker
from fedlora.strategies.base import State, global_tensors


def measure_state(worker: Worker, state: State, split: str) -> Mapping[str, float]:
    """The metrics of `state` on `split` ("validation" or "test"), named `<split>_<metric>`."""
    adapted = worker.adapted(state.manifest)
    adapted.load(global_tensors(state))
    return {f"{split}_{name}": value for name, value in worker.measure(adapted, split).items()}
