"""From a configuration to its task."""

from collections.abc import Callable, Mapping

from fedlora.config.schema import RunConfig
from fedlora.tasks import causal_lm, image_classification, text_classification
from fedlora.tasks.base import Task

TASKS: Mapping[str, Callable[[RunConfig, tuple[str, ...] | None], Task]] = {
    "text_classification": text_classification.make,
    "causal_lm": causal_lm.make,
    "image_classification": image_classification.make,
}


def make_task(config: RunConfig, labels: tuple[str, ...] | None) -> Task:
    """The task that `config` asks for, with the data set's `labels` (index = class id).

    Loads tokenizer or image processor and the model's configuration, no weights; an asset that is not in the cache yet
    is fetched.

    Raises ModelError if the model cannot be read or does not suit the task, AssetError if a download fails.
    """
    return TASKS[config.task.name](config, labels)
