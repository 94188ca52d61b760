"""`train.keep_prefix`: which layers are left out, and where there is room for what they give."""

import shutil
import tempfile

from torch import nn

from fedlora.adapters.modules import find_modules
from fedlora.config.schema import RunConfig
from fedlora.errors import ModelError
from fedlora.tasks.base import Encoded, Task
from fedlora.tasks.prefix import frozen_layers, with_states
from fedlora.tasks.rows import TokenRows
from fedlora.training.settings import torch_settings


def kept_prefix(config: RunConfig, task: Task, base: nn.Module, skeleton: nn.Module, rows: Encoded) -> Encoded:
    """`rows` with the hidden states that enter the first adapted layer of `base`, computed now.

    skeleton: the same model without an adapter. At most half of the free room for temporary files is taken.

    Raises ModelError if there is nothing to keep, or no room.
    """
    adapted = find_modules(skeleton, config.adapter.targets, head=task.head_parameters(skeleton))
    layer = frozen_layers(skeleton, adapted)
    if not layer or not isinstance(rows, TokenRows):
        raise ModelError(
            f"train.keep_prefix=true, but {type(skeleton).__name__} has no layers below the adapters of which that is"
            f" known: the first adapted module is {next(iter(adapted))!r}. Adapt upper layers only, e.g."
            " 'adapter.targets=[5.attention.self.query]' in a BERT, or set train.keep_prefix=false"
        )
    room = shutil.disk_usage(tempfile.gettempdir()).free / 2
    with torch_settings(config.train):
        return with_states(base, rows, layer, batch=config.eval.batch, most=room)
