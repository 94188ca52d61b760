"""pfl-research's simulation: `python -m benchmarks.peers.pfl FOLDER SETTINGS`, in an environment that has it.

Each of the `workers` processes has a part of the cohort and the model; one all-reduce a round, as its documentation
says. The first process writes one line of JSON: seconds of each round after the first.
"""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.workload import RATE, Settings, Workload

FOLDER, SETTINGS = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))


class Learner(torch.nn.Module):
    """What pfl asks of a model. Inputs arrive as float32: ids and masks are made whole again."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:  # noqa: A002 - pfl's name
        """Mean over the batch; padding is cut to the longest text of the batch, as a careful user does."""
        del eval
        longest = int(x[:, 1].sum(dim=1).max())
        ids, mask = x[:, 0, :longest].long(), x[:, 1, :longest].long()
        found: torch.Tensor = self.inner(input_ids=ids, attention_mask=mask, labels=y.long()).loss
        return found

    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> dict[str, Any]:  # noqa: A002
        """None of its own."""
        del x, y, eval
        return {}


def users(workload: Workload) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """By user: inputs [rows, 2, tokens] (ids and mask) and labels."""
    found, tokens = {}, workload.shape.tokens
    for client, batches in enumerate(workload.batches()):
        parts = [
            torch.stack([torch.nn.functional.pad(part, (0, tokens - part.shape[1])) for part in (ids, mask)], dim=1)
            for ids, mask, _ in batches
        ]
        labels = torch.cat([batch[2] for batch in batches])
        found[str(client)] = (torch.cat(parts).float().numpy(), labels.numpy())
    return found


def simulate(workload: Workload) -> list[float]:
    """Seconds from one round's end to the next."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    moments: list[float] = []

    class Timed(TrainingProcessCallback):  # type: ignore[misc]
        """Notes when rounds end."""

        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            moments.append(time.perf_counter())
            return False, Metrics()

    learner, rows = Learner(workload.model(SETTINGS.attention, half=SETTINGS.half)), users(workload)
    trained = [each for each in learner.parameters() if each.requires_grad]
    model = PyTorchModel(
        learner,
        lambda parameters, lr: torch.optim.SGD([each for each in parameters if each.requires_grad], lr=lr),
        torch.optim.SGD(trained, lr=1.0),
    )
    data = FederatedDataset(
        lambda user: Dataset(raw_data=list(rows[user]), user_id=user), get_user_sampler("minimize_reuse", list(rows))
    )
    batch = workload.shape.batch
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=SETTINGS.rounds + 1,
            evaluation_frequency=10**9,
            train_cohort_size=workload.shape.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(data, data),
        model=model,
        model_train_params=NNTrainHyperParams(local_batch_size=batch, local_num_epochs=1, local_learning_rate=RATE),
        model_eval_params=NNEvalHyperParams(local_batch_size=batch),
        callbacks=[Timed()],
    )
    return [after - before for before, after in pairwise(moments[1:])]


def main() -> None:
    """The first process starts the others. On a GPU there is one: several share none, as pfl has them talk by NCCL."""
    os.environ["PFL_PYTORCH_DEVICE"] = SETTINGS.device
    rank = int(os.environ.get("PFL_WORKER_RANK", "0"))
    others = []
    if SETTINGS.device == "cpu" and SETTINGS.workers > 1 and "PFL_WORKER_RANK" not in os.environ:
        addresses = ",".join(f"127.0.0.1:{29_500 + number}" for number in range(SETTINGS.workers))
        os.environ.update(PFL_WORKER_ADDRESSES=addresses, PFL_WORKER_RANK="0")
        command = [sys.executable, "-m", "benchmarks.peers.pfl", *sys.argv[1:]]
        others = [
            subprocess.Popen(command, env={**os.environ, "PFL_WORKER_RANK": str(number)}, stdout=subprocess.DEVNULL)
            for number in range(1, SETTINGS.workers)
        ]
    torch.set_num_threads(SETTINGS.threads)
    if SETTINGS.matmul is not None:
        torch.set_float32_matmul_precision(SETTINGS.matmul)
    seconds = simulate(Workload.read(FOLDER))
    for other in others:
        other.wait(60)
    if rank == 0:
        print("RESULT " + json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
