"""LoRA factors as PEFT's checkpoint files have them: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedlora.adapters.manifest import Form, Manifest, Role, Tensors, factor_name, head_name
from fedlora.errors import ModelError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HEADS_OF_PEFT: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
}
"""Modules that PEFT's own classes for a task type always treat as the head, whatever the checkpoint says."""

Array = NDArray[Any]


@dataclass(frozen=True)
class LoraFactors:
    """An adapter that PEFT can express: ΔW = `scaling`·B·A for each module, and the head's values.

    factors: module → (A of shape (r, k), B of shape (d, r)). head: parameter name in the base model → value.
    """

    r: int
    scaling: float
    factors: Mapping[str, tuple[Array, Array]]
    head: Mapping[str, Array]

    @property
    def alpha(self) -> float:
        """LoRA's α = s·r; an int where it is whole, as readers of PEFT's configuration expect."""
        alpha = self.scaling * self.r
        return int(alpha) if float(alpha).is_integer() else alpha


def fold(manifest: Manifest, tensors: Tensors) -> LoraFactors:
    """The adapter as LoRA factors. LoRA-SB's B·R becomes B, multiplied in float64; LoRA's factors are kept as they are.

    tensors: all of the manifest's.

    Raises ModelError if one is missing.
    """
    missing = [name for name in manifest if name not in tensors]
    if missing:
        raise ModelError(f"the adapter lacks {len(missing)} of its tensors, e.g. {missing[0]!r}: give all of them")
    form = FORMS[manifest.form]
    factors = {module: form(module, tensors) for module in manifest.modules()}
    start = len(head_name(""))
    head = {name[start:]: tensors[name] for name, spec in manifest.tensors.items() if spec.role is Role.HEAD}
    return LoraFactors(manifest.r, manifest.scaling, factors, head)


def _lora(module: str, tensors: Tensors) -> tuple[Array, Array]:
    return tensors[factor_name(module, Role.A)], tensors[factor_name(module, Role.B)]


def _lora_sb(module: str, tensors: Tensors) -> tuple[Array, Array]:
    left = np.asarray(tensors[factor_name(module, Role.B)], dtype=np.float64)
    middle = np.asarray(tensors[factor_name(module, Role.R)], dtype=np.float64)
    return tensors[factor_name(module, Role.A)], left @ middle


FORMS = {Form.LORA: _lora, Form.LORA_SB: _lora_sb}


def config_json(
    adapter: LoraFactors, *, task_type: str | None, base: str, revision: str | None, fan_in_fan_out: bool
) -> bytes:
    """`adapter_config.json`, made by PEFT's LoraConfig; equal adapters give equal bytes.

    base: PEFT's `base_model_name_or_path`. fan_in_fan_out: whether the adapted layers store their weight as (k, d).
    """
    from peft import LoraConfig

    config = LoraConfig(
        task_type=task_type or None,
        r=adapter.r,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.factors),
        modules_to_save=head_modules(adapter.head, task_type) or None,
        base_model_name_or_path=base,
        revision=revision,
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=True,
    )
    # PEFT keeps target_modules as a set: sorted, the file does not depend on Python's hash seed.
    fields = {name: sorted(v) if isinstance(v, set) else v for name, v in config.to_dict().items()}
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def weights_bytes(adapter: LoraFactors) -> bytes:
    """`adapter_model.safetensors`: float32 factors and the head, under PEFT's key names."""
    tensors = {f"{PREFIX}{name}": np.array(value, order="C") for name, value in adapter.head.items()}
    for module, (a, b) in adapter.factors.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.array(a, dtype=np.float32, order="C")
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.array(b, dtype=np.float32, order="C")
    return save(tensors, metadata={"format": "pt"})


def head_modules(parameters: Iterable[str], task_type: str | None) -> list[str]:
    """The modules that hold the head's `parameters`, outermost ones only: PEFT's `modules_to_save`.

    Raises ModelError for a parameter outside of any module, which PEFT cannot save.
    """
    known = HEADS_OF_PEFT.get(task_type or "", ())
    owners = list(dict.fromkeys(_owner(name, known) for name in parameters))
    return [path for path in owners if not any(path.startswith(f"{other}.") for other in owners)]


def _owner(parameter: str, known: tuple[str, ...]) -> str:
    parts = parameter.split(".")[:-1]
    if not parts:
        raise ModelError(f"the head's parameter {parameter!r} is in no module of the model: PEFT cannot save it")
    named = [index for index, part in enumerate(parts) if part in known]
    return ".".join(parts[: named[0] + 1] if named else parts)


def read_adapter(folder: Path) -> LoraFactors:
    """The adapter in a folder that holds PEFT's two files.

    Raises ModelError if the files are missing or broken, or if the adapter is more than plain LoRA of one rank.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{str(folder)!r} holds no readable PEFT adapter ({CONFIG_FILE} and {WEIGHTS_FILE}): {error}"
        ) from error
    _require_plain(config, folder)
    factors = _paired(tensors, folder)
    head = {name.removeprefix(PREFIX): value for name, value in tensors.items() if ".lora_" not in name}
    return LoraFactors(config["r"], config["lora_alpha"] / config["r"], factors, head)


def _paired(tensors: Mapping[str, Array], folder: Path) -> dict[str, tuple[Array, Array]]:
    modules = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
    lonely = [module for module in modules if f"{module}.lora_B.weight" not in tensors]
    if lonely or not modules:
        raise ModelError(f"the adapter in {str(folder)!r} is incomplete: {lonely or 'it has no lora_A at all'}")
    return {
        module.removeprefix(PREFIX): (tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"])
        for module in modules
    }


def _require_plain(config: Mapping[str, Any], folder: Path) -> None:
    extras = [
        name
        for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "target_parameters")
        if config.get(name)
    ]
    if config.get("peft_type") != "LORA" or extras or not {"r", "lora_alpha"} <= set(config):
        raise ModelError(
            f"the adapter in {str(folder)!r} is not plain LoRA of one rank (peft_type={config.get('peft_type')!r},"
            f" {', '.join(extras) or 'r or lora_alpha missing'}): merge it with PEFT's merge_and_unload"
        )
