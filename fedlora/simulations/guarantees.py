"""What a configuration promises, and what it does not: one list, read by the plan and the report."""

from dataclasses import dataclass

from fedlora.config.schema import RunConfig
from fedlora.privacy.statement import statement
from fedlora.strategies.base import Strategy


@dataclass(frozen=True)
class Guarantee:
    """A promise by name, whether it holds here, and why (or why not), as a sentence."""

    name: str
    holds: bool
    why: str


def guarantees(config: RunConfig, method: Strategy) -> tuple[Guarantee, ...]:
    """The promises for `config`, settled, with `method`."""
    return (_exact(method), _repeatable(config), _unseen(config), _start(method), _private(config, method))


def _exact(method: Strategy) -> Guarantee:
    if method.exact:
        return Guarantee("exact average", True, f"the new ΔW of {method.name} is the weighted mean of the clients' ΔW")
    why = (
        f"{method.name} averages factors, so its new ΔW differs from the clients' mean; each round reports by how much"
    )
    return Guarantee("exact average", False, why)


def _repeatable(config: RunConfig) -> Guarantee:
    if config.privacy.name != "none" and config.privacy.noise == "system":
        return Guarantee(
            "same bits", False, "the noise comes from the operating system's entropy and is never the same"
        )
    if config.train.device == "cpu" or (config.train.device == "auto" and not _has_cuda()):
        why = "the same seed, machine, torch and train.threads give the same bits, also after a crash and resume"
        return Guarantee("same bits", True, why)
    return Guarantee("same bits", False, "some CUDA kernels have no deterministic form; set train.device=cpu")


def _unseen(config: RunConfig) -> Guarantee:
    if config.data.deduplicate:
        why = "rows are de-duplicated before the split, and the test split is read once, after the last round"
        return Guarantee("unseen test rows", True, why)
    why = "data.deduplicate=false: rows that are repeated in the source may count several times"
    return Guarantee("unseen test rows", False, why)


def _start(method: Strategy) -> Guarantee:
    if method.reads_private_data:
        why = f"{method.name} with these options starts from gradients of the clients' own rows; simulation only"
        return Guarantee("data-free start", False, why)
    if method.private_start:
        why = f"{method.name} with these options starts from sketches that clients noise and account for"
        return Guarantee("data-free start", False, why)
    return Guarantee("data-free start", True, "the first adapter does not depend on any client's rows")


def _private(config: RunConfig, method: Strategy) -> Guarantee:
    said = statement(config, method)
    return Guarantee("privacy", said.holds, said.headline)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
