"""Puts an adapter, described by a manifest, into a base model.

PEFT's own LoRA layers are injected into the stock transformers model, in place: the model keeps its class and its
`forward`, and what is trained here is what `PeftModel` computes from an exported checkpoint.
"""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedlora.adapters.adapted import ADAPTER, AdaptedModel
from fedlora.adapters.low_rank import shorten
from fedlora.adapters.manifest import Form, Manifest, Role, factor_name, head_name
from fedlora.adapters.modules import is_transposed
from fedlora.errors import ModelError


class FactorProduct(nn.Module):
    """LoRA-SB's B·R in the place of LoRA's B (Ponkshe et al., arXiv 2411.19557): x ↦ B(R(x)).

    Two ordinary linear layers, so that per-record gradients (Opacus) work on R. `weight` is the product, which is what
    PEFT reads to merge.
    """

    def __init__(self, r: int, d: int) -> None:
        super().__init__()
        self.R = nn.Linear(r, r, bias=False)
        self.B = nn.Linear(r, d, bias=False)

    @property
    def weight(self) -> Tensor:
        """B @ R, shape (d, r)."""
        return self.B.weight @ self.R.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (…, r) → (…, d)."""
        product: Tensor = self.B(self.R(inputs))
        return product


def attach(model: nn.Module, manifest: Manifest, *, dropout: float = 0.0, base_dropout: bool = False) -> AdaptedModel:
    """Adds `manifest`'s factors, all zero, to `model` in place and freezes every parameter.

    dropout: of the adapter's input during local training, in [0, 1). base_dropout: whether the base model's own dropout
    is on then, too.
    The head's tensors are the model's own parameters: loading an adapter overwrites them.
    Draws nothing from torch's global random state.

    Raises ModelError if a module of the manifest is missing or of the wrong shape, if the model already has an
    adapter, or if layers of both storage orders (`nn.Linear` and `Conv1D`) are to be adapted.
    """
    config = _lora_config(model, manifest, dropout)
    with torch.random.fork_rng(devices=[]):  # layers draw initial values that nobody uses
        inject_adapter_in_model(config, model, ADAPTER)
        layers = {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}
        for layer in layers.values():
            _finish_layer(layer, manifest)
    if set(layers) != set(manifest.modules()):
        odd = sorted(set(layers) ^ set(manifest.modules()))
        raise ModelError(f"PEFT adapted other modules of {type(model).__name__} than the manifest names: {odd}")
    model.requires_grad_(False)
    model.eval()
    return AdaptedModel(model, manifest, layers, _parameters(model, manifest, layers), base_dropout=base_dropout)


def _lora_config(model: nn.Module, manifest: Manifest, dropout: float) -> LoraConfig:
    modules = dict(model.named_modules())
    if any(isinstance(module, LoraLayer) for module in modules.values()):
        raise ModelError(f"{type(model).__name__} already has an adapter: attach to a freshly loaded base model")
    missing = [path for path in manifest.modules() if path not in modules]
    if missing or not manifest.modules():
        raise ModelError(
            f"{type(model).__name__} has no modules {missing}, which the adapter needs: it was made for another model"
            if missing
            else "the manifest adapts no module: check adapter.targets"
        )
    orders = {is_transposed(modules[path]) for path in manifest.modules()}
    if len(orders) > 1:
        raise ModelError("an adapter cannot hold nn.Linear and Conv1D layers together: narrow adapter.targets to one")
    return LoraConfig(
        r=manifest.r,
        lora_alpha=manifest.scaling * manifest.r,
        target_modules=manifest.modules(),
        lora_dropout=dropout,
        bias="none",
        fan_in_fan_out=orders.pop(),
        init_lora_weights=False,
    )


def _finish_layer(layer: LoraLayer, manifest: Manifest) -> None:
    """Exact scaling, zero factors, and LoRA-SB's product in the place of B."""
    layer.scaling[ADAPTER] = manifest.scaling
    if manifest.form is Form.LORA_SB:
        old = layer.lora_B[ADAPTER]
        product = FactorProduct(manifest.r, old.out_features)
        layer.lora_B[ADAPTER] = product.to(device=old.weight.device)
    for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
        for parameter in factor.parameters():
            nn.init.zeros_(parameter)
    shorten(layer, ADAPTER)


def _parameters(model: nn.Module, manifest: Manifest, layers: dict[str, LoraLayer]) -> dict[str, nn.Parameter]:
    """The model's parameter behind each tensor of the manifest."""
    parameters = {}
    for path, layer in layers.items():
        for role, factor in _factors(layer, manifest.form).items():
            parameters[factor_name(path, role)] = factor.get_parameter("weight")
    own = dict(model.named_parameters())
    parameters |= {head_name(name): own[name] for name in own if head_name(name) in manifest.tensors}
    if set(parameters) != set(manifest.tensors):
        odd = sorted(set(parameters) ^ set(manifest.tensors))
        raise ModelError(f"the manifest and {type(model).__name__} disagree on these tensors: {odd}")
    for name, spec in manifest.tensors.items():
        _match(name, parameters[name], spec.shape, spec.dtype)
    return {name: parameters[name] for name in manifest.tensors}


def _factors(layer: LoraLayer, form: Form) -> dict[Role, nn.Linear]:
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    return {Role.A: a, Role.B: b} if form is Form.LORA else {Role.A: a, Role.R: b.R, Role.B: b.B}


def _match(name: str, parameter: nn.Parameter, shape: tuple[int, ...], dtype: str) -> None:
    if tuple(parameter.shape) != shape:
        raise ModelError(
            f"tensor {name!r} has shape {tuple(parameter.shape)} in the model, but the manifest says {shape}"
        )
    if not name.startswith(head_name("")):
        # A factor has the manifest's dtype whatever the base's: PEFT casts its input, so half-precision bases work.
        parameter.data = parameter.data.to(getattr(torch, dtype))
    elif parameter.dtype is not getattr(torch, dtype):
        raise ModelError(f"tensor {name!r} is {parameter.dtype} in the model, but the manifest says {dtype}")
