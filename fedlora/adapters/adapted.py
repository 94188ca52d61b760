"""A base model with an adapter in it: clients' adapters are swapped in and out, the base is loaded once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from torch import nn

from fedlora.adapters.flat import Flat, Layout, layout_of
from fedlora.adapters.gathered import Gathered
from fedlora.adapters.manifest import Manifest, Tensors, head_name
from fedlora.adapters.modules import as_outputs_by_inputs
from fedlora.errors import ModelError
from fedlora.tasks.base import Batch, Task, move

ADAPTER = "default"
"""PEFT's name for the one adapter in the model."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class AdaptedModel:
    """A model that `attach` made.

    model: the stock transformers model, with PEFT layers inside; in eval mode except within `training()`.
    manifest: what its adapter consists of.
    """

    def __init__(
        self,
        model: nn.Module,
        manifest: Manifest,
        layers: Mapping[str, LoraLayer],
        parameters: Mapping[str, nn.Parameter],
        *,
        base_dropout: bool,
    ) -> None:
        self.model = model
        self.manifest = manifest
        self._layers = layers
        self._parameters = parameters
        self._base_dropout = base_dropout
        self._sources: dict[str, tuple[bytes, torch.Tensor]] = {}
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._last: Flat | None = None
        self._all = list(model.parameters())  # looking for them takes longer than what is done with them
        self._dropouts = [layer.lora_dropout for layer in layers.values()]
        self._gathered = Gathered({name: parameters[name] for name in gathered_names(manifest)})

    @property
    def device(self) -> torch.device:
        """Where the adapter lives."""
        return next(iter(self._parameters.values())).device

    @property
    def layers(self) -> Mapping[str, LoraLayer]:
        """PEFT's layers by the path of the module they adapt."""
        return self._layers

    @torch.no_grad()
    def load(self, tensors: Tensors) -> None:
        """Copies `tensors` (by manifest name) into the model; tensors that are not named keep their values.

        Raises ModelError for a name, shape or dtype that the manifest does not have; then nothing was changed.
        """
        piece = self._gathered.piece(tensors.layout.names) if isinstance(tensors, Flat) else None
        if isinstance(tensors, Flat) and piece is not None:
            self._load_flat(tensors, piece)
            return
        sources = [self._source(name, array) for name, array in tensors.items()]
        if sources:
            torch._foreach_copy_([self._parameters[name] for name in tensors], sources)

    def _load_flat(self, tensors: Flat, piece: torch.Tensor) -> None:
        """What came last is not checked again: nobody changes it, and a round's clients share it."""
        if self._last is not tensors:
            for name, array in tensors.items():
                self._check(name, array)
            self._last = tensors
        if piece.device.type == "cpu":
            np.copyto(piece.numpy(), tensors.vector)  # torch would wake its other threads for it
        else:
            piece.copy_(torch.from_numpy(tensors.vector.copy()))

    def _source(self, name: str, array: NDArray[np.floating]) -> torch.Tensor:
        """`array`, checked, for torch. That of bytes is kept: they cannot change, and a round's clients share them."""
        frozen = _frozen_bytes(array)
        known = self._sources.get(name)
        if known is not None and frozen is not None and known[0] is frozen:
            return known[1]
        self._check(name, array)
        # A copy: arrays that came off a wire are read-only, and torch refuses those.
        found = torch.from_numpy(np.array(array)).to(self._parameters[name].device)
        if frozen is not None:
            self._sources[name] = (frozen, found)
        return found

    @torch.no_grad()
    def read(self, names: Iterable[str]) -> Tensors:
        """Copies of the named tensors, by manifest name: in one piece, where one copy reads them."""
        wanted = tuple(names)
        piece = self._gathered.piece(wanted)
        if piece is None:
            return {name: self._parameter(name).cpu().numpy().copy() for name in wanted}
        return Flat(self._layout(wanted), piece.cpu().numpy().copy())

    @torch.no_grad()
    def not_finite(self, names: Sequence[str]) -> list[str]:
        """Those of the named tensors that have an infinity or a NaN."""
        piece = self._gathered.piece(tuple(names))
        if piece is not None and bool(torch.isfinite(piece).all()):
            return []
        return [name for name in names if not bool(torch.isfinite(self._parameter(name)).all())]

    def _layout(self, names: tuple[str, ...]) -> Layout:
        if names not in self._layouts:
            self._layouts[names] = layout_of(tuple((name, self.manifest.tensors[name].shape) for name in names))
        return self._layouts[names]

    def parameters(self, names: Iterable[str]) -> list[nn.Parameter]:
        """The live parameters behind the named tensors, in that order."""
        return [self._parameter(name) for name in names]

    def set_trained(self, names: Iterable[str]) -> None:
        """Lets gradients flow to exactly the named tensors; everything else is frozen and has no gradient."""
        chosen = self.parameters(names)
        for parameter in self._all:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in chosen:
            parameter.requires_grad_(True)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train mode for the adapter's dropout and, if it was attached with `base_dropout`, for the base model's own.

        Batch normalisation never leaves eval mode: its statistics belong to the frozen base.
        """
        if self._base_dropout:
            self._train_base()
        for dropout in self._dropouts:
            dropout.train()
        try:
            yield
        finally:
            if self._base_dropout:
                self.model.eval()
            for dropout in self._dropouts:
                dropout.eval()

    def _train_base(self) -> None:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()

    def base_weight(self, module: str) -> NDArray[np.float32]:
        """W0 of an adapted module: a copy of shape (d, k) = (outputs, inputs), float32."""
        base = self._base_layer(module)
        return as_outputs_by_inputs(base, base.get_parameter("weight"))

    def gradient(self, task: Task, batches: Iterable[Batch]) -> dict[str, NDArray[np.float32]]:
        """Per adapted module, the gradient of the mean loss over all records of `batches`, at the base weights.

        Returns arrays of shape (d, k), float32: G of LoRA-SB's initialisation (Ponkshe et al., arXiv 2411.19557),
        before sign and SVD. The adapter is switched off meanwhile, the head has the values it has, there is no
        dropout. Memory: 4·d·k bytes a module, for all modules at once, besides the activations of one batch.

        Raises ModelError if there is no record.
        """
        weights = {module: self._base_layer(module).get_parameter("weight") for module in self._layers}
        with self._base_only(weights.values()):
            records = sum(self._accumulate(task, batch) for batch in batches)
            if records == 0:
                raise ModelError("a gradient needs at least one record, but no batch was given")
            return {module: self._mean_gradient(module, weight, records) for module, weight in weights.items()}

    def _accumulate(self, task: Task, batch: Batch) -> int:
        """Adds the gradient of the batch's summed loss to `.grad`; returns the number of records."""
        losses = task.losses(self.model, move(batch, self.device))
        torch.autograd.backward(losses.sum())
        return len(losses)

    def _mean_gradient(self, module: str, weight: nn.Parameter, records: int) -> NDArray[np.float32]:
        total = torch.zeros_like(weight) if weight.grad is None else weight.grad
        return as_outputs_by_inputs(self._base_layer(module), total / records)

    @contextmanager
    def _base_only(self, weights: Iterable[nn.Parameter]) -> Iterator[None]:
        """The adapter off, gradients for `weights` alone; afterwards the flags are as before, no gradient is left."""
        trained = [name for name, parameter in self._parameters.items() if parameter.requires_grad]
        self.set_trained([])
        self._enable(False)
        for weight in weights:
            weight.requires_grad_(True)
        try:
            yield
        finally:
            self._enable(True)
            self.set_trained(trained)

    def _enable(self, on: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(on)

    def _base_layer(self, module: str) -> nn.Module:
        if module not in self._layers:
            raise ModelError(f"{module!r} is not an adapted module; these are: {_some(list(self._layers))}")
        base: nn.Module = self._layers[module].get_base_layer()
        return base

    def _parameter(self, name: str) -> nn.Parameter:
        if name not in self._parameters:
            raise ModelError(f"{name!r} is not a tensor of this adapter; these are: {_some(list(self._parameters))}")
        return self._parameters[name]

    def _check(self, name: str, array: NDArray[np.floating]) -> None:
        self._parameter(name)
        spec = self.manifest.tensors[name]
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise ModelError(
                f"tensor {name!r} must be {spec.dtype} of shape {spec.shape}, but is {array.dtype} of shape"
                f" {array.shape}"
            )


def gathered_names(manifest: Manifest) -> list[str]:
    """The tensors that lie in one piece: what travels with each round first, what is trained before what is not."""
    specs = manifest.tensors
    kind = next(iter(specs.values())).dtype
    alike = [name for name, spec in specs.items() if spec.dtype == kind]
    return sorted(alike, key=lambda name: (not specs[name].uploaded, not specs[name].trained))


def _frozen_bytes(array: NDArray[Any]) -> bytes | None:
    """What holds the values, where that is all of one message's array (so its bytes say everything); else None."""
    owner = getattr(array.base, "base", None)
    whole = isinstance(owner, bytes) and array.base is not None and array.base.size == array.size
    return owner if whole and array.flags.c_contiguous else None


def head_tensors(model: nn.Module, names: Sequence[str]) -> dict[str, NDArray[np.floating]]:
    """The values of the head's parameters `names` (as `Task.head_parameters` gives them), by manifest name."""
    return {head_name(name): model.get_parameter(name).detach().cpu().numpy().copy() for name in names}


def _some(names: list[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown
