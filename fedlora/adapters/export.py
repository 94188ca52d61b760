"""Writes a run's adapter as a PEFT checkpoint, from its tensors: of the base model only the structure is looked at."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.adapters.card import model_card
from fedlora.adapters.folder import whole_folder
from fedlora.adapters.manifest import Manifest, Tensors
from fedlora.adapters.modules import is_transposed, linear_layer
from fedlora.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE, config_json, fold, weights_bytes
from fedlora.config.schema import ModelConfig, RunConfig
from fedlora.errors import ModelError
from fedlora.privacy.account import FILE as PRIVACY_FILE
from fedlora.privacy.account import Account, promised
from fedlora.server.records import json_number
from fedlora.tasks.base import Task

ORIGIN_FILE = "fedlora.json"
"""How the adapter was made: what `fedlora merge` needs to load its base model again."""


def export_adapter(
    folder: Path,
    *,
    manifest: Manifest,
    tensors: Tensors,
    task: Task,
    config: RunConfig,
    summary: Mapping[str, float],
    account: Account | None = None,
) -> Path:
    """Writes the adapter to `folder`, whole or not at all; an earlier export there is replaced. Returns `folder`.

    `PeftModel.from_pretrained(base, folder)` loads it without fedlora. The head is in it whether it was trained or
    not: it was made for the task, so the base model lacks it. LoRA-SB is folded: A as it is, B·R (in float64, rounded
    to float32) as B. Also in the folder: tokenizer or image processor, a model card, `privacy.json` and `fedlora.json`.

    tensors: all of the manifest's (`global_tensors` of a state). summary: figures for the card. account: the run's
    privacy; None: what the configuration promises.

    Raises ModelError if a tensor is missing or `folder` holds something else, StoreError if it cannot be written.
    """
    adapter = fold(manifest, tensors)
    card, account = task.card(), account or promised(config)
    skeleton = task.load_skeleton()
    settings = config_json(
        adapter,
        task_type=task.peft_task_type,
        base=base_reference(config.model),
        revision=config.model.revision,
        fan_in_fan_out=any(is_transposed(linear_layer(skeleton, path)) for path in adapter.factors),
    )
    with whole_folder(folder, CONFIG_FILE) as draft:
        task.save_processor(str(draft))
        (draft / CONFIG_FILE).write_bytes(settings)
        (draft / WEIGHTS_FILE).write_bytes(weights_bytes(adapter))
        (draft / "README.md").write_text(model_card("adapter", config, card, summary, account), encoding="utf-8")
        (draft / PRIVACY_FILE).write_text(account.to_json(), encoding="utf-8")
        (draft / ORIGIN_FILE).write_text(_origin(config, card, summary), encoding="utf-8")
    return folder


def base_reference(model: ModelConfig) -> str:
    """PEFT's `base_model_name_or_path`: a folder for a local model, else the name."""
    return str(model.path) if model.source == "local" else model.name


def _origin(config: RunConfig, card: Mapping[str, Any], summary: Mapping[str, float]) -> str:
    # No paths of this machine but that of a local base model, without which it could not be merged.
    made = config.model_dump(
        mode="json", exclude={"store": True, "output": True, "data": {"path"}, "privacy": {"ledgers"}}
    )
    figures = {name: json_number(value) for name, value in summary.items()}
    return json.dumps({"config": made, "labels": list(card["labels"]), "summary": figures}, indent=2) + "\n"


def read_origin(folder: Path) -> tuple[RunConfig, tuple[str, ...] | None, dict[str, float]]:
    """The configuration, the labels (None if there are none) and the figures behind an exported adapter.

    Raises ModelError if `folder` has no readable `fedlora.json`.
    """
    try:
        made = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        summary = {name: float(value) for name, value in made["summary"].items()}
        return RunConfig.model_validate(made["config"]), tuple(made["labels"]) or None, summary
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{str(folder)!r} does not say how it was made ({ORIGIN_FILE}: {error}): merge from the run itself, or with"
            " PEFT's merge_and_unload"
        ) from error
