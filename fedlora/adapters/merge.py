"""Merges an adapter into its base model: an ordinary transformers folder that needs neither PEFT nor fedlora."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from fedlora.adapters.card import model_card
from fedlora.adapters.folder import whole_folder
from fedlora.adapters.modules import is_transposed, linear_layer
from fedlora.adapters.peft_format import Array, LoraFactors
from fedlora.config.schema import RunConfig
from fedlora.errors import ModelError
from fedlora.privacy.account import FILE as PRIVACY_FILE
from fedlora.privacy.account import Account, promised
from fedlora.tasks.base import Task


def merge_adapter(
    base: nn.Module,
    adapter: LoraFactors,
    folder: Path,
    *,
    task: Task,
    config: RunConfig,
    summary: Mapping[str, float],
    account: Account | None = None,
) -> Path:
    """Merges `adapter` into `base` (in place) and saves it to `folder`, whole or not at all. Returns `folder`.

    Also written: tokenizer or image processor, a model card and privacy.json. An earlier merge in `folder` is replaced.
    account: the run's privacy; None: what the configuration promises.

    Raises ModelError if the adapter does not fit, is not finite, or `folder` holds something else; StoreError if it
    cannot be written.
    """
    if not isinstance(base, PreTrainedModel):
        raise ModelError(f"{type(base).__name__} is no transformers model: it cannot be saved as one")
    merge_into(base, adapter)
    account = account or promised(config)
    with whole_folder(folder, "config.json") as draft:
        base.save_pretrained(draft)
        task.save_processor(str(draft))
        card = model_card("merged model", config, task.card(), summary, account)
        (draft / "README.md").write_text(card, encoding="utf-8")
        (draft / PRIVACY_FILE).write_text(account.to_json(), encoding="utf-8")
    return folder


@torch.no_grad()
def merge_into(base: nn.Module, adapter: LoraFactors) -> None:
    """Puts W0 + s·B·A (computed in float64, rounded to the weight's dtype) and the head's values into `base`.

    Raises ModelError, with nothing changed, if a module or shape does not fit, a value is not finite, or an adapted
    weight is shared with another module, which would change as well.
    """
    layers = {path: linear_layer(base, path) for path in adapter.factors}
    _require_unshared(base, layers)
    values = {f"{path}.weight": _merged(path, layer, adapter) for path, layer in layers.items()}
    values |= {name: torch.from_numpy(np.array(value)) for name, value in adapter.head.items()}
    for name, value in values.items():
        _require_fit(base, name, value)
    for name, value in values.items():
        base.get_parameter(name).copy_(value)


def _merged(path: str, layer: nn.Module, adapter: LoraFactors) -> torch.Tensor:
    a, b = (np.asarray(factor, dtype=np.float64) for factor in adapter.factors[path])
    weight = layer.get_parameter("weight").double().cpu()
    change = torch.from_numpy(_scaled_product(path, b, a, adapter.scaling))
    change = change.T if is_transposed(layer) else change
    if change.shape != weight.shape:
        raise ModelError(f"the adapter's update of {path!r} has shape {tuple(change.shape)}, not {tuple(weight.shape)}")
    return weight + change


def _scaled_product(path: str, b: Array, a: Array, scaling: float) -> Array:
    if b.shape[1] != a.shape[0]:
        raise ModelError(f"the factors of {path!r} have different ranks: B is {b.shape}, A is {a.shape}")
    return scaling * (b @ a)


def _require_fit(base: nn.Module, name: str, value: torch.Tensor) -> None:
    try:
        shape = base.get_parameter(name).shape
    except AttributeError as error:
        raise ModelError(f"{type(base).__name__} has no parameter {name!r}: the adapter is another model's") from error
    if shape != value.shape:
        raise ModelError(f"parameter {name!r} has shape {tuple(shape)}, but the adapter's is {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ModelError(f"merging would make {name!r} not finite: the adapter is broken; export an earlier round")


def _require_unshared(base: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path, layer in layers.items():
        names = owners[id(layer.get_parameter("weight"))]
        if len(names) > 1:
            raise ModelError(
                f"{path!r} shares its weight ({', '.join(names)}), so merging would change more than that layer: use"
                " the adapter with PEFT instead"
            )
