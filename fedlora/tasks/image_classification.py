"""Image classification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessorPil

from fedlora.config.schema import ModelConfig, RunConfig
from fedlora.errors import DataError, ModelError
from fedlora.tasks.base import Batch
from fedlora.tasks.cards import IMAGE_INPUTS, Recipe, card
from fedlora.tasks.classification import record_losses, record_metrics
from fedlora.tasks.heads import head_parameters
from fedlora.tasks.loading import ModelLoader, make_loader, quiet, require_labels
from fedlora.tasks.rows import chunks, class_ids, require_columns
from fedlora.tasks.sources import model_folder, named_errors, pretrained_options

PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageRows:
    """Images as bytes [rows, C, H, W]; a batch has them as float32, (pixels · scale − mean) / std, and the labels."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scale: float
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`pixel_values` [n, C, H, W] float32 and `labels` [n] int64."""
        picked = np.asarray(rows, np.int64)
        pixels = torch.from_numpy(self.pixels[picked]).to(torch.float32)
        return {
            "pixel_values": (pixels * self.scale - self.mean) / self.std,
            "labels": torch.from_numpy(self.labels[picked]),
        }

    def compact(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The same as `batch`."""
        return self.batch(rows)

    def dealt(self, parts: Sequence[Sequence[int]], *, level: bool = False) -> tuple[dict[str, Tensor], Sequence[int]]:
        """See `fedlora.tasks.base.Encoded`; a row is a record, so none are added."""
        del level
        return self.batch([row for part in parts for row in part]), [len(part) for part in parts]


@dataclass
class ImageClassification:
    """The task `image_classification` (see `fedlora.tasks.base.Task`). Logits have the shape [n, labels].

    PEFT has no task type for images: its own name for that is None, which loads as a plain `PeftModel`.
    """

    loader: ModelLoader
    processor: Any
    labels: tuple[str, ...]
    name: str = "image_classification"
    peft_task_type: str | None = None

    def load_base(self) -> nn.Module:
        return self.loader.base()

    def load_skeleton(self) -> nn.Module:
        return self.loader.skeleton()

    def head_parameters(self, model: nn.Module) -> list[str]:
        return head_parameters(model)

    def encode(self, rows: Dataset) -> ImageRows:
        """Resizes the images of column `image` (PIL images, or arrays [H, W] or [H, W, C] of 0–255) and keeps bytes.

        Raises DataError for a missing column, something that is no image, or a bad label.
        """
        require_columns(rows, ["image", "label"])
        pixels = [self._pixels(start, chunk["image"]) for start, chunk in chunks(rows)]
        scale, mean, std = self._normalisation()
        return ImageRows(np.concatenate(pixels), class_ids(rows, self.labels), scale, mean, std)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return record_losses(self.logits(model, batch), batch["labels"])

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return record_metrics(self.logits(model, batch), batch["labels"])

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(pixel_values=batch["pixel_values"]).logits
        return logits

    def card(self) -> Mapping[str, Any]:
        ramp = np.arange(0, 256, 17).reshape(4, 4)
        return card(
            self.loader,
            labels=self.labels,
            recipe=Recipe(
                auto="AutoModelForImageClassification",
                processor="AutoImageProcessor",
                example=[{"image": ramp.tolist()}, {"image": ramp.T.tolist()}],
                code=IMAGE_INPUTS.format(mode=self._mode()),
                imports="import numpy as np\nfrom PIL import Image\n",
                processor_options=', backend="pil"',
            ),
        )

    def save_processor(self, folder: str) -> None:
        self.processor.save_pretrained(folder)

    def _mode(self) -> str:
        return "L" if _channels(self.loader.config) == 1 else "RGB"

    def _pixels(self, start: int, images: Sequence[Any]) -> NDArray[np.uint8]:
        arrays = [_array(start + offset, image, self._mode()) for offset, image in enumerate(images)]
        resized = self.processor(
            arrays, do_rescale=False, do_normalize=False, input_data_format="channels_last", return_tensors="np"
        )
        return np.asarray(resized["pixel_values"]).round().clip(0, 255).astype(np.uint8)

    def _normalisation(self) -> tuple[float, Tensor, Tensor]:
        scale = float(self.processor.rescale_factor) if self.processor.do_rescale else 1.0
        if not self.processor.do_normalize:
            return scale, torch.tensor(0.0), torch.tensor(1.0)
        mean = torch.tensor(self.processor.image_mean, dtype=torch.float32)
        std = torch.tensor(self.processor.image_std, dtype=torch.float32)
        return scale, mean.view(-1, 1, 1), std.view(-1, 1, 1)


def make(config: RunConfig, labels: tuple[str, ...] | None) -> ImageClassification:
    """The task for `config`. Raises ModelError if there are no labels, or the configuration cannot be read."""
    named = require_labels("image_classification", labels)
    loader = make_loader(config, AutoModelForImageClassification, named)
    return ImageClassification(loader, _processor(config.model, loader.config), named)


def _processor(model: ModelConfig, architecture: Any) -> Any:
    """The model's own image processor; without one, resize to its input size and scale to ±1."""
    if not _has_processor(model):
        half = [0.5] * _channels(architecture)
        return ViTImageProcessorPil(size=_input_size(model, architecture), image_mean=half, image_std=half)
    options = pretrained_options(model)
    with quiet(), named_errors(model):
        return AutoImageProcessor.from_pretrained(model_folder(model), backend="pil", **options)


def _has_processor(model: ModelConfig) -> bool:
    if model.source == "config" and model.path is None:
        return False
    folder = model_folder(model)
    return isinstance(folder, str) or (folder / PROCESSOR_FILE).is_file()


def _input_size(model: ModelConfig, architecture: Any) -> dict[str, int]:
    size = getattr(architecture, "image_size", None)
    if size is None:
        raise ModelError(
            f"model {model.name!r} names no image_size and has no {PROCESSOR_FILE}, so the size of its input is"
            " unknown; add that file to its folder"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return {"height": int(height), "width": int(width)}


def _channels(architecture: Any) -> int:
    return int(getattr(architecture, "num_channels", 3))


def _array(row: int, image: Any, mode: str) -> NDArray[np.uint8]:
    """One image as bytes [H, W, C], with 1 channel in mode L and 3 in mode RGB."""
    if isinstance(image, Image):
        image = image.convert(mode)
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[:, :, None]
    wanted = len(mode)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array.repeat(wanted, axis=2)
    if array.ndim != 3 or array.shape[2] != wanted or not _bytes(array):
        raise DataError(
            f"row {row} of column 'image' is no image: its values are {array.dtype} of shape {array.shape}, but the"
            f" model reads PIL images, or whole numbers from 0 to 255 of shape [H, W] or [H, W, {wanted}]"
        )
    return array.astype(np.uint8)


def _bytes(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "iu" and bool(((array >= 0) & (array <= 255)).all())
