"""Image classification: what becomes of pixels, bad input, models from a configuration."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL.Image import fromarray
from transformers import AutoImageProcessor, ViTImageProcessorPil

from fedlora.errors import DataError, ModelError
from fedlora.tasks.image_classification import ImageClassification
from fedlora.tasks.registry import make_task
from tests.tiny import IMAGE_LABELS, build_vit, tiny_config

Cases = dict[str, tuple[Any, Dataset]]
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
}


def _random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_are_kept_as_bytes_and_scaled_to_one_in_a_batch(cases: Cases) -> None:
    task, rows = cases["image"]
    encoded = task.encode(rows)
    assert encoded.pixels.dtype == np.uint8
    batch = encoded.batch([5, 2])
    raw = np.stack([np.asarray(rows[row]["image"]) for row in (5, 2)])
    torch.testing.assert_close(batch["pixel_values"], torch.from_numpy(raw[:, None] / 255.0).float() * 2 - 1)
    assert batch["labels"].tolist() == [rows[5]["label"], rows[2]["label"]]


@pytest.mark.parametrize("given", ["image", "array", "list"])
def test_images_may_be_pil_arrays_or_lists(cases: Cases, given: str) -> None:
    task, _ = cases["image"]
    pixels = _random(14, 14)
    image = {"image": fromarray(pixels), "array": pixels, "list": pixels.tolist()}[given]
    assert np.array_equal(task._pixels(0, [image])[0, 0], pixels)


def test_a_batch_is_what_the_models_own_processor_makes(tmp_path: Path, tiny_images: Path) -> None:
    folder = build_vit(tmp_path)
    ViTImageProcessorPil(size={"height": 14, "width": 14}, image_mean=[0.3], image_std=[0.2]).save_pretrained(folder)
    task = make_task(tiny_config(folder, tiny_images), IMAGE_LABELS)
    images = [fromarray(_random(20, 17)), fromarray(_random(14, 14))]
    rows = Dataset.from_dict({"image": images, "label": [0, 1]})
    own = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(task.encode(rows).batch([0, 1])["pixel_values"], own, atol=1e-6, rtol=0)


def test_a_model_can_be_made_of_a_configuration_and_the_seed_alone(tiny_images: Path) -> None:
    def task(seed: int) -> ImageClassification:
        source = {"source": "config", "name": "small", "path": None, "architecture": VIT}
        return make_task(tiny_config(Path("vit"), tiny_images, model=source, seed=seed), IMAGE_LABELS)  # type: ignore[return-value]

    first, again, other = (task(seed).load_base().state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "vit.layers.0.attention.q_proj.weight"
    assert not torch.equal(first[name], other[name])
    encoded = task(0).encode(Dataset.from_dict({"image": [_random(8, 8, 3).tolist()], "label": [0]}))
    assert encoded.batch([0])["pixel_values"].shape == (1, 3, 8, 8)
    assert "seed 0" in task(0).card()["base"]


def test_grey_images_fill_three_channels(tiny_images: Path) -> None:
    source = {"source": "config", "name": "small", "path": None, "architecture": VIT}
    task: Any = make_task(tiny_config(Path("vit"), tiny_images, model=source), IMAGE_LABELS)
    grey = _random(8, 8)
    for image in (grey, fromarray(grey)):
        assert all(np.array_equal(channel, grey) for channel in task._pixels(0, [image])[0])


@pytest.mark.parametrize(
    "image",
    [np.full((14, 14), 0.5), np.full((14, 14), 256), np.full((14, 14), -1), np.zeros((14, 14, 4), np.uint8), "a.png"],
)
def test_what_is_no_image_is_named(cases: Cases, image: Any) -> None:
    with pytest.raises(DataError, match="row 7 of column 'image' is no image"):
        cases["image"][0]._pixels(7, [image])


def test_columns_are_needed(cases: Cases) -> None:
    with pytest.raises(DataError, match="no column 'image'"):
        cases["image"][0].encode(Dataset.from_dict({"label": [0]}))


def test_a_model_without_an_input_size_is_refused(tiny_images: Path) -> None:
    source = {"source": "config", "name": "r", "path": None, "architecture": {"model_type": "resnet"}}
    with pytest.raises(ModelError, match="names no image_size"):
        make_task(tiny_config(Path("r"), tiny_images, model=source), IMAGE_LABELS)
