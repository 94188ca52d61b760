"""What clients say of training and of the model they received, put together for a round."""

from collections.abc import Callable, Mapping, Sequence

from fedlora.wire import Answer

Metrics = Mapping[str, float]
_HELD = "holdout_"


def clients_found(answers: Sequence[Answer]) -> dict[str, float]:
    """A round's `train_loss` and `clients_…` metrics, of what the answers hold of them.

    Exact metrics are weighted by rows. Noised counts (local DP) are added up and divided: `clients_accuracy` then lies
    in [0, 1] only because it is put there.
    """
    return {**_train_loss(answers), **_exact(answers), **_noised(answers)}


def _train_loss(answers: Sequence[Answer]) -> dict[str, float]:
    found = _mean(answers, "loss", lambda answer: float(answer.samples))
    return {} if found is None else {"train_loss": found}


def _exact(answers: Sequence[Answer]) -> dict[str, float]:
    names = dict.fromkeys(name for answer in answers for name in answer.metrics if name.startswith(_HELD))
    shown = [name for name in names if name not in {"holdout_rows", "holdout_correct", "holdout_units"}]
    means = {name: _mean(answers, name, lambda answer: answer.metrics.get("holdout_rows", 0.0)) for name in shown}
    return {f"clients_{name.removeprefix(_HELD)}": value for name, value in means.items() if value is not None}


def _noised(answers: Sequence[Answer]) -> dict[str, float]:
    units = sum(answer.metrics.get("holdout_units", 0.0) for answer in answers)
    if not units > 0:
        return {}
    correct = sum(answer.metrics.get("holdout_correct", 0.0) for answer in answers)
    return {"clients_accuracy": min(1.0, max(0.0, correct / units)), "clients_units": units}


def _mean(answers: Sequence[Answer], name: str, weight: Callable[[Answer], float]) -> float | None:
    """The weighted mean of a metric over the answers that hold it; None if none does or all weigh nothing."""
    held = [answer for answer in answers if name in answer.metrics]
    total = sum(weight(answer) for answer in held)
    return sum(weight(answer) * answer.metrics[name] for answer in held) / total if total > 0 else None
