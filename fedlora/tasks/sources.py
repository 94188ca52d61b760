"""Where a base model comes from: an asset, a hub, a local folder, or a configuration alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedlora.config.schema import ModelConfig
from fedlora.data.assets import fetch, find
from fedlora.errors import ModelError


def model_folder(model: ModelConfig) -> str | Path:
    """The folder (or, for a hub, the name) that transformers' `from_pretrained` takes for `model`.

    An asset is fetched if it is not in the cache yet. For `source=config` it is `model.path`, which then holds only the
    tokenizer or image processor.

    Raises ModelError if there is no such folder or a file that it must have is missing, AssetError for
    an unknown asset or a failed download.
    """
    return _FOLDERS[model.source](model)


def pretrained_options(model: ModelConfig) -> dict[str, Any]:
    """The arguments that every `from_pretrained` of `model` gets: revision, GGUF file, and never remote code."""
    options: dict[str, Any] = {"trust_remote_code": False}
    if model.revision is not None:
        options["revision"] = model.revision
    gguf = gguf_file(model)
    if gguf is not None:
        options["gguf_file"] = gguf
    return options


def gguf_file(model: ModelConfig) -> str | None:
    """The GGUF file inside the model's folder, or None if its weights are in safetensors.

    An asset whose files include one needs no `model.gguf`.
    """
    if model.gguf is not None or model.source != "asset":
        return model.gguf
    return next((file for file in find("model", model.name).files if file.endswith(".gguf")), None)


def base_text(model: ModelConfig, seed: int) -> str:
    """What a person needs to get the same base model: a hub name, a requirement, a folder's label."""
    return _TEXTS[model.source](model, seed)


@contextmanager
def named_errors(model: ModelConfig) -> Iterator[None]:
    """Turns what transformers raises while it loads `model` into a ModelError that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:600].rstrip(".")
        raise ModelError(
            f"model {model.name!r} (model.source={model.source}) cannot be loaded: {reason}. {_HINTS[model.source]}"
        ) from error


def _asset(model: ModelConfig) -> Path:
    return _checked(fetch(find("model", model.name)), model)


def _hub(model: ModelConfig) -> str:
    return model.name


def _local(model: ModelConfig) -> Path:
    if model.path is None:
        raise ModelError(f"model {model.name!r}: model.source=local needs model.path, the folder with the model")
    return _checked(model.path, model)


def _config(model: ModelConfig) -> Path:
    if model.path is None:
        raise ModelError(
            f"model {model.name!r}: model.source=config has no tokenizer; set model.path to a folder with one"
        )
    return _existing(model.path, model)


def _existing(folder: Path, model: ModelConfig) -> Path:
    if not folder.is_dir():
        raise ModelError(f"model {model.name!r}: there is no folder {str(folder)!r}; check model.path")
    return folder


def _checked(folder: Path, model: ModelConfig) -> Path:
    needed = gguf_file(model) or "config.json"
    if not (_existing(folder, model) / needed).is_file():
        raise ModelError(
            f"model {model.name!r}: the folder {str(folder)!r} has no file {needed!r}, so it holds no model that"
            " transformers can read; check model.path (and model.gguf, for weights in a GGUF file)"
        )
    return folder


_FOLDERS: Mapping[str, Callable[[ModelConfig], str | Path]] = {
    "asset": _asset,
    "hub": _hub,
    "local": _local,
    "config": _config,
}

_TEXTS: Mapping[str, Callable[[ModelConfig, int], str]] = {
    "asset": lambda model, _: f"{model.name} (package {find('model', model.name).requirement})",
    "hub": lambda model, _: model.name if model.revision is None else f"{model.name}@{model.revision}",
    "local": lambda model, _: model.name,
    "config": lambda model, seed: f"{model.name} (random weights of {model.architecture}, seed {seed})",
}

_HINTS: Mapping[str, str] = {
    "asset": "Delete its folder in the cache to fetch it again, or choose another with `fedlora ls models`",
    "hub": "Check the name and the revision. If the hub cannot be reached from here, use model.source=local with a"
    " folder, or model.source=asset (`fedlora ls models`)",
    "local": "model.path must hold config.json, the weights as safetensors (or model.gguf) and the tokenizer or image"
    " processor, of an architecture that transformers has for this task; code in the folder is never run",
    "config": "model.architecture must be a model_type of transformers with a class for this task, and its settings",
}
