"""Each row is one record's gradient and no other's: against a loop over records, in float64, and against Opacus."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedlora.adapters.adapted import AdaptedModel, head_tensors
from fedlora.adapters.attach import attach
from fedlora.adapters.low_rank import lengthen
from fedlora.adapters.modules import find_modules
from fedlora.client.worker import worker_for
from fedlora.errors import PrivacyError
from fedlora.privacy.layers import recorded
from fedlora.tasks.base import Batch
from fedlora.training.local import trained_names
from tests.adapters.making import adapted_task, make_manifest, random_tensors, tiny_gpt2
from tests.tiny import tiny_config

METHODS = ["lora", "ffa", "sb"]
MODELS = ["bert", "llama", "vit", "gpt2"]
RECORDS = [3, 11, 17, 29, 40]  # of different lengths


class Scene:
    """A model in float64, batches of any of its records, and the records' losses."""

    def __init__(
        self, adapted: AdaptedModel, batch: Callable[[Sequence[int]], Batch], losses: Callable[[Batch], Tensor]
    ) -> None:
        self.adapted, self.batch, self.losses = adapted, batch, losses
        adapted.load(random_tensors(adapted.manifest))
        adapted.model.double()
        self.names = trained_names(adapted.manifest)
        adapted.set_trained(self.names)

    def rows(self, batch: Batch) -> Tensor:
        """The recorded rows of one batch, as a copy."""
        with recorded(self.adapted, self.names) as rows:
            rows.begin(len(RECORDS))
            torch.autograd.backward(self.losses(batch).sum())
            return rows.finish().clone()

    def gradient(self, batch: Batch) -> Tensor:
        """The ordinary gradient of the batch's summed loss."""
        parameters = self.adapted.parameters(self.names)
        found = torch.autograd.grad(self.losses(batch).sum(), parameters)
        return torch.cat([part.reshape(-1) for part in found])


@pytest.fixture
def scene(
    tiny_bert: Path,
    tiny_llama: Path,
    tiny_vit: Path,
    tiny_text_csv: Path,
    tiny_qa_jsonl: Path,
    tiny_images: Path,
) -> Callable[..., Scene]:
    places = {"bert": (tiny_bert, tiny_text_csv), "llama": (tiny_llama, tiny_qa_jsonl), "vit": (tiny_vit, tiny_images)}

    def make(model: str, method: str, **options: float) -> Scene:
        if model == "gpt2":
            return gpt2_scene(method, **options)
        config = tiny_config(*places[model])
        task, adapted = adapted_task(config, method, **options)
        encoded = worker_for(config).encoded("train")
        return Scene(adapted, lambda rows: floats(encoded.batch(rows)), lambda b: task.losses(adapted.model, b))

    return make


def floats(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def gpt2_scene(method: str, **options: float) -> Scene:
    """Conv1D layers, whose weights are stored transposed; texts of different lengths."""
    model = tiny_gpt2()
    head = head_tensors(model, ["score.weight"])
    modules = find_modules(model, ["c_attn"], head=["score.weight"])
    adapted = attach(model, make_manifest(method, modules, head=head), **options)
    draw = np.random.default_rng(1)
    ids = torch.from_numpy(draw.integers(5, 100, (50, 9)))
    lengths = torch.from_numpy(draw.integers(3, 10, 50))
    labels = torch.from_numpy(draw.integers(0, 3, 50))

    def batch(rows: Sequence[int]) -> Batch:
        width = int(lengths[rows].max())
        mask = (torch.arange(width) < lengths[rows].unsqueeze(1)).long()
        return {"input_ids": ids[rows, :width] * mask, "attention_mask": mask, "labels": labels[rows]}

    def losses(found: Batch) -> Tensor:
        logits = adapted.model(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits, found["labels"], reduction="none")

    return Scene(adapted, batch, losses)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_each_row_is_the_gradient_of_one_record_alone(scene: Callable[..., Scene], model: str, method: str) -> None:
    there = scene(model, method)
    rows = there.rows(there.batch(RECORDS))
    alone = torch.stack([there.gradient(there.batch([record])) for record in RECORDS])
    assert float(alone.abs().max()) > 1e-3
    torch.testing.assert_close(rows, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_changing_one_record_leaves_all_other_rows_bit_equal(
    scene: Callable[..., Scene], model: str, method: str
) -> None:
    there = scene(model, method)
    batch = there.batch(RECORDS)
    name = "pixel_values" if model == "vit" else "input_ids"
    changed = {**batch, name: batch[name].clone()}
    changed[name][2] = batch[name][0]
    before, after = there.rows(batch), there.rows(changed)
    others = [0, 1, 3, 4]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("method", METHODS)
def test_the_forward_pass_and_its_dropout_are_the_same(scene: Callable[..., Scene], method: str) -> None:
    there = scene("bert", method, dropout=0.5)
    batch = there.batch(RECORDS)
    with there.adapted.training(), torch.random.fork_rng():
        torch.manual_seed(3)
        usual = there.gradient(batch)
        torch.manual_seed(3)
        with recorded(there.adapted, there.names) as rows:
            rows.begin(len(RECORDS))
            torch.autograd.backward(there.losses(batch).sum())
            found = rows.finish().sum(0)
    torch.testing.assert_close(found, usual, rtol=1e-12, atol=1e-12)


def test_nothing_is_left_behind(scene: Callable[..., Scene]) -> None:
    there = scene("bert", "lora")
    batch = there.batch(RECORDS)
    before = there.losses(batch)
    there.rows(batch)
    assert all(parameter.grad is None for parameter in there.adapted.model.parameters())
    assert torch.equal(there.losses(batch), before)
    there.gradient(batch)  # the layers' own backward pass is back


def recomputed(forward: Callable[..., Tensor], reentrant: bool, *args: Tensor, **kwargs: object) -> Tensor:
    found: Tensor = checkpoint(partial(forward, **kwargs), *args, use_reentrant=reentrant)
    return found


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_nothing(scene: Callable[..., Scene], method: str, reentrant: bool) -> None:
    there = scene("bert", method)
    batch = there.batch(RECORDS)
    plain = there.rows(batch)
    model = there.adapted.model
    for layer in model.bert.encoder.layer:  # type: ignore[operator, union-attr]
        layer.forward = partial(recomputed, layer.forward, reentrant)
    model.enable_input_require_grads()  # type: ignore[operator]
    torch.testing.assert_close(there.rows(batch), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_autocast_gives_rows_of_full_precision_masters(scene: Callable[..., Scene], method: str) -> None:
    there = scene("bert", method)
    there.adapted.model.float()
    batch = {n: t.float() if t.is_floating_point() else t for n, t in there.batch(RECORDS).items()}
    exact = there.rows(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rows = there.rows(batch)
    assert rows.dtype is torch.float32
    error = torch.linalg.vector_norm(rows - exact, dim=1) / torch.linalg.vector_norm(exact, dim=1)
    assert float(error.max()) < 0.05


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus's own hooks, on the first layer
def test_opacus_agrees(scene: Callable[..., Scene]) -> None:
    there = scene("bert", "lora")
    batch = there.batch(RECORDS)
    rows = there.rows(batch)
    for layer in there.adapted.layers.values():
        lengthen(layer)
    wrapped = GradSampleModule(there.adapted.model, strict=False, loss_reduction="sum")
    wrapped.train()
    for module in wrapped.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.autograd.backward(there.losses(batch).sum())
    theirs = [parameter.grad_sample for parameter in there.adapted.parameters(there.names)]  # type: ignore[attr-defined]
    found = torch.cat([part.reshape(len(RECORDS), -1) for part in theirs], dim=1)
    wrapped.remove_hooks()
    torch.testing.assert_close(rows, found, rtol=1e-12, atol=1e-12)


def test_packed_rows_are_refused(tiny_bert: Path, tiny_text_csv: Path) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv)
    task, adapted = adapted_task(config, "lora")
    packed = worker_for(config).encoded("train").compact(list(range(20)))
    names = trained_names(adapted.manifest)
    adapted.set_trained(names)
    with recorded(adapted, names) as rows:
        rows.begin(20)
        with pytest.raises(PrivacyError, match=r"set train\.packing=false"):
            task.losses(adapted.model, packed)


def test_a_module_that_is_used_twice_is_refused(scene: Callable[..., Scene]) -> None:
    there = scene("bert", "lora")
    batch = there.batch(RECORDS)
    with recorded(there.adapted, there.names) as rows:
        rows.begin(len(RECORDS))
        twice = there.losses(batch).sum() + there.losses(batch).sum()
        with pytest.raises(PrivacyError, match="twice in one backward pass"):
            torch.autograd.backward(twice)


def test_a_trained_tensor_of_another_kind_of_layer_is_refused(scene: Callable[..., Scene]) -> None:
    there = scene("bert", "lora")
    model = there.adapted.model
    classifier = model.get_submodule("classifier")

    class Odd(torch.nn.Linear):
        pass

    odd = Odd(32, 3)
    odd.weight, odd.bias = classifier.weight, classifier.bias  # type: ignore[assignment]
    model.set_submodule("classifier", odd)
    with (
        pytest.raises(PrivacyError, match=r"head:classifier\.weight|classifier.weight"),
        recorded(there.adapted, there.names),
    ):
        pass


def test_the_loss_of_the_batch_must_reach_every_tensor(scene: Callable[..., Scene]) -> None:
    there = scene("bert", "lora")
    with recorded(there.adapted, there.names) as rows:
        rows.begin(2)
        with pytest.raises(PrivacyError, match="got no per-record gradient"):
            rows.finish()
