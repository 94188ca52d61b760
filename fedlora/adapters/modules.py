"""Which modules of a base model get an adapter, and the shape of their weights.

Two kinds of layer can be adapted: `nn.Linear`, whose weight is stored as (d outputs, k inputs), and transformers'
`Conv1D` (GPT-2), which computes the same map but stores its weight as (k, d). Everything outside this file and
`attach.py` speaks of (d, k) only.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora.errors import ModelError

Shape = tuple[int, int]


def find_modules(model: nn.Module, targets: Sequence[str] | None, *, head: Sequence[str] = ()) -> dict[str, Shape]:
    """The modules to adapt: path in the base model → (d, k), in the order of `model.named_modules()`.

    targets: last parts of module names, e.g. `query` or `attention.output.dense`; None means PEFT's default for
    `model.config.model_type`. head: the names of the task head's parameters; their modules are never adapted.
    No weight is read, so a model on the meta device will do.

    Raises ModelError, with the names that could be adapted, if PEFT has no default for the architecture, or if a target
    fits no linear layer.
    """
    layers = _linear_layers(model, head)
    wanted = _default_targets(model, layers) if targets is None else _suffix_tests(targets)
    missing = [name for name, fits in wanted.items() if not any(fits(path) for path in layers)]
    if missing and (targets is not None or len(missing) == len(wanted)):
        raise ModelError(
            f"no linear layer of {type(model).__name__} is called {_listed(missing)}: set adapter.targets to names from"
            f" {_listed(candidates(layers))}"
        )
    return {path: shape for path, shape in layers.items() if any(fits(path) for fits in wanted.values())}


def candidates(paths: Sequence[str] | dict[str, Shape]) -> list[str]:
    """The last parts of `paths`, each once, sorted, leaving out mere numbers."""
    return sorted({path.rpartition(".")[2] for path in paths if not path.rpartition(".")[2].isdigit()})


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer stores its weight as (k, d) rather than (d, k)."""
    return isinstance(layer, Conv1D)


def weight_shape(layer: nn.Module) -> Shape:
    """(d, k) of a linear layer: outputs, inputs."""
    first, second = layer.get_parameter("weight").shape
    return (int(second), int(first)) if is_transposed(layer) else (int(first), int(second))


def linear_layer(model: nn.Module, path: str) -> nn.Module:
    """The layer at `path`.

    Raises ModelError if there is none, or if it is neither `nn.Linear` nor `Conv1D`.
    """
    layer = dict(model.named_modules()).get(path)
    if not isinstance(layer, nn.Linear | Conv1D):
        found = "has no module" if layer is None else f"has a {type(layer).__name__}, not a linear layer,"
        raise ModelError(f"{type(model).__name__} {found} at {path!r}: the adapter was made for another model")
    return layer


def as_outputs_by_inputs(layer: nn.Module, values: Tensor) -> NDArray[np.float32]:
    """A float32 copy of `values`, which are shaped like the layer's weight, as (d, k)."""
    array = values.detach().float().cpu().numpy()
    return np.array(array.T if is_transposed(layer) else array, order="C")


def _linear_layers(model: nn.Module, head: Sequence[str]) -> dict[str, Shape]:
    owners = {name.rpartition(".")[0] for name in head}
    return {
        path: weight_shape(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and path not in owners
    }


Fits = Callable[[str], bool]


def _default_targets(model: nn.Module, layers: dict[str, Shape]) -> dict[str, Fits]:
    # peft takes seconds to import and only this default needs it.
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    model_type = getattr(getattr(model, "config", None), "model_type", None)
    default = DEFAULTS.get(model_type)
    if default is None:
        raise ModelError(
            f"PEFT has no default target modules for the architecture {model_type!r} ({type(model).__name__}): set"
            f" adapter.targets to names from {_listed(candidates(layers))}"
        )
    # PEFT writes a default either as last parts of names or as one regular expression over whole paths.
    return _pattern_test(default) if isinstance(default, str) else _suffix_tests(default)


def _suffix_tests(targets: Sequence[str]) -> dict[str, Fits]:
    return {target: _suffix_test(target) for target in targets}


def _suffix_test(target: str) -> Fits:
    return lambda path: path == target or path.endswith(f".{target}")


def _pattern_test(pattern: str) -> dict[str, Fits]:
    return {pattern: lambda path: re.fullmatch(pattern, path) is not None}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) if names else "(none)"
