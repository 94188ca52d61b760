"""pfl-research with clients that train next to nothing (one SGD step of a sum, without a model's forward pass):
`python -m benchmarks.peers.idle_pfl SETTINGS`. One process."""

import sys
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.peers.idle import STEP, WARM, Stopwatch, arrays, settings_of

SETTINGS = settings_of(sys.argv)


class Learner(torch.nn.Module):
    """What pfl asks of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.values = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(each)) for each in arrays().values()])

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:  # noqa: A002 - pfl's name
        """The sum of all values: its gradient is 1 everywhere."""
        del x, y, eval
        return torch.stack([each.sum() for each in self.values]).sum()

    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> dict[str, Any]:  # noqa: A002
        """None to speak of."""
        del x, y, eval
        return {"l": Weighted(0.0, 1)}


class Timed(TrainingProcessCallback):  # type: ignore[misc]
    """Notes when rounds end."""

    watch = Stopwatch()

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
        """A round is over."""
        self.watch.mark()
        return False, Metrics()


def main() -> None:
    """All rounds."""
    torch.set_num_threads(1)
    learner, timed = Learner(), Timed()
    model = PyTorchModel(
        learner,
        lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        torch.optim.SGD(learner.parameters(), lr=1.0),
    )
    rows = (np.zeros((8, 1), np.float32), np.zeros(8, np.int64))
    sampler = get_user_sampler("minimize_reuse", list(range(SETTINGS.cohort)))
    users = FederatedDataset(lambda user: Dataset(raw_data=list(rows), user_id=str(user)), sampler)
    timed.watch.mark()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=SETTINGS.rounds + WARM,
            evaluation_frequency=10**9,
            train_cohort_size=SETTINGS.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(users, users),
        model=model,
        model_train_params=NNTrainHyperParams(local_batch_size=8, local_num_epochs=1, local_learning_rate=STEP),
        model_eval_params=NNEvalHyperParams(local_batch_size=8),
        callbacks=[timed],
    )
    timed.watch.tell()


if __name__ == "__main__":
    main()
