"""Noised sketches: each record's pair is brute force's, a unit moves the sum by no more than is paid for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedlora.client.worker import worker_for
from fedlora.errors import PrivacyError, StrategyError
from fedlora.privacy.dp_sgd import ROUNDING, DpSgd, Learner, Units
from fedlora.privacy.randomness import RandomSource, seeded_source
from fedlora.privacy.sketch import SketchPair, noised_sketch, sketch_matrices, sketch_pairs, sketched
from fedlora.seeding import portable_uniform
from fedlora.strategies.base import sketch_name
from fedlora.strategies.fed_sb import bases_from_sketches, truncated_svd
from fedlora.tasks.base import Batch
from tests.adapters.making import adapted_task, task_of
from tests.privacy.test_dp_sgd import UNITS, no_sampling
from tests.privacy.test_per_record import RECORDS, Scene, floats, gpt2_scene, recomputed
from tests.tiny import tiny_config

WIDTH, SEED = 3, 11
MECHANISM = DpSgd(noise_multiplier=0.7, bound=0.5, rate=0.4, expected=8.0, steps=1)
EVERYBODY = DpSgd(noise_multiplier=1e-9, bound=1e3, rate=1.0, expected=float(len(UNITS)), steps=1)

Make = Callable[..., Scene]
Learn = Callable[..., tuple[Scene, Learner]]
Bases = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


@pytest.fixture
def scene(tiny_bert: Path, tiny_text_csv: Path) -> Make:
    """A model in float64 whose adapter and head have random values: nn.Linear (bert) or Conv1D (gpt2)."""

    def make(model: str = "bert") -> Scene:
        if model == "gpt2":
            return gpt2_scene("sb")
        config = tiny_config(tiny_bert, tiny_text_csv)
        task, adapted = adapted_task(config, "sb")
        encoded = worker_for(config).encoded("train")
        return Scene(adapted, lambda rows: floats(encoded.batch(rows)), lambda b: task.losses(adapted.model, b))

    return make


@pytest.fixture
def learn(scene: Make, tiny_bert: Path, tiny_text_csv: Path) -> Learn:
    """The same scene as a learner of private steps."""

    def make(micro_batch: int = 100) -> tuple[Scene, Learner]:
        config = tiny_config(tiny_bert, tiny_text_csv)
        there = scene()
        return there, Learner(there.adapted, task_of(config), worker_for(config).encoded("train"), micro_batch)

    return make


def rows_of(there: Scene, batch: Batch, pairs: dict[str, SketchPair]) -> Tensor:
    """The recorded rows of one batch, as a copy."""
    with sketched(there.adapted, pairs) as rows:
        rows.begin(len(batch["input_ids"]))
        torch.autograd.backward(there.losses(batch).sum())
        return rows.finish().clone()


def weight_gradients(there: Scene, records: Sequence[int]) -> dict[str, Tensor]:
    """G (d, k) of each module, of the records' summed loss at the base weights, by torch alone."""
    layers = there.adapted.layers
    bases = [layer.get_base_layer() for layer in layers.values()]
    for layer in layers.values():
        layer.enable_adapters(False)
    weights = [base.weight.requires_grad_(True) for base in bases]
    found = torch.autograd.grad(there.losses(there.batch(records)).sum(), weights)
    for layer in layers.values():
        layer.enable_adapters(True)
    there.adapted.set_trained(there.names)
    return {m: g.t() if type(b) is Conv1D else g for m, g, b in zip(layers, found, bases, strict=True)}


def by_hand(there: Scene, records: Sequence[int], pairs: dict[str, SketchPair]) -> Tensor:
    """GΩ and GᵀΨ of every module in one vector."""
    found = weight_gradients(there, records)
    parts = [each for m, p in pairs.items() for each in (found[m] @ p.omega, found[m].t() @ p.psi)]
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_each_row_is_the_sketch_of_one_record_alone_at_the_base_weights(scene: Make, model: str) -> None:
    there = scene(model)
    pairs = sketch_pairs(there.adapted, WIDTH, SEED)
    batch = there.batch(RECORDS)
    assert not batch["attention_mask"].all()  # ragged: some are padded
    rows = rows_of(there, batch, pairs)
    alone = torch.stack([by_hand(there, [record], pairs) for record in RECORDS])
    assert float(alone.abs().max()) > 1e-3
    torch.testing.assert_close(rows, alone, rtol=1e-12, atol=1e-12)
    other = sketch_pairs(there.adapted, WIDTH, SEED + 1)  # the negative control: other sketches of the same gradients
    assert not torch.allclose(rows_of(there, batch, other), alone, atol=1e-4)


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_changing_one_record_leaves_all_other_rows_bit_equal(scene: Make, model: str) -> None:
    there = scene(model)
    pairs = sketch_pairs(there.adapted, WIDTH, SEED)
    batch = there.batch(RECORDS)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][2] = batch["input_ids"][0]
    before, after = rows_of(there, batch, pairs), rows_of(there, changed, pairs)
    others = [0, 1, 3, 4]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[2], after[2])


def test_nothing_is_left_behind(scene: Make) -> None:
    there = scene()
    parameters = list(there.adapted.model.parameters())
    flags = [parameter.requires_grad for parameter in parameters]
    batch = there.batch(RECORDS)
    before = there.losses(batch)
    with sketched(there.adapted, sketch_pairs(there.adapted, WIDTH, SEED)) as rows:
        assert not any(each.requires_grad for each in parameters)
        rows.begin(len(RECORDS))
        torch.autograd.backward(there.losses(batch).sum())
        rows.finish()
        assert all(parameter.grad is None for parameter in parameters)  # the head's too
    assert [parameter.requires_grad for parameter in parameters] == flags
    assert any(flags)
    assert torch.equal(there.losses(batch), before)
    there.gradient(batch)  # the layers' own forward and backward pass are back


def test_gradient_checkpointing_changes_nothing(scene: Make) -> None:
    there = scene()
    pairs = sketch_pairs(there.adapted, WIDTH, SEED)
    batch = there.batch(RECORDS)
    plain = rows_of(there, batch, pairs)
    for layer in there.adapted.model.bert.encoder.layer:  # type: ignore[operator, union-attr]
        own = layer.forward
        layer.forward = lambda *args, own=own, **kwargs: recomputed(own, False, *args, **kwargs)
    torch.testing.assert_close(rows_of(there, batch, pairs), plain, rtol=1e-12, atol=1e-12)


def test_bf16_autocast_gives_rows_of_full_precision(scene: Make) -> None:
    there = scene()
    there.adapted.model.float()
    batch = {n: t.float() if t.is_floating_point() else t for n, t in there.batch(RECORDS).items()}
    pairs = sketch_pairs(there.adapted, WIDTH, SEED)
    exact = rows_of(there, batch, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        rows = rows_of(there, batch, pairs)
    assert rows.dtype is torch.float32
    error = torch.linalg.vector_norm(rows - exact, dim=1) / torch.linalg.vector_norm(exact, dim=1)
    assert 0 < float(error.max()) < 0.05


def test_what_cannot_be_told_apart_is_refused(scene: Make) -> None:
    there = scene()
    pairs = sketch_pairs(there.adapted, WIDTH, SEED)
    batch = there.batch(RECORDS)
    with sketched(there.adapted, pairs) as rows:
        rows.begin(len(RECORDS) + 1)
        with pytest.raises(PrivacyError, match="was given 5 rows for a batch of 6 records"):
            there.losses(batch)
        rows.begin(len(RECORDS))
        with pytest.raises(PrivacyError, match="got no per-record gradient"):
            rows.finish()
        twice = there.losses(batch).sum() + there.losses(batch).sum()
        with pytest.raises(PrivacyError, match="twice in one backward pass"):
            torch.autograd.backward(twice)


def test_another_kind_of_layer_is_refused_by_name(scene: Make) -> None:
    there = scene()
    pairs = sketch_pairs(there.adapted, WIDTH, SEED)
    path = next(iter(pairs))
    there.adapted.layers[path].base_layer.__class__ = type("Odd", (torch.nn.Linear,), {})
    with pytest.raises(PrivacyError, match=rf"module '{path}' is a Odd"), sketched(there.adapted, pairs):
        pass
    there.gradient(there.batch(RECORDS))  # still trained as before


def test_sketches_come_from_the_seed_and_the_module_alone() -> None:
    omega, psi = sketch_matrices("layer.0.query", 12, 9, 4, 5)
    assert (omega.shape, psi.shape) == ((9, 4), (12, 4))
    for each, again in zip((omega, psi), sketch_matrices("layer.0.query", 12, 9, 4, 5), strict=True):
        np.testing.assert_array_equal(each, again)
        np.testing.assert_allclose(each.T @ each, np.eye(4), atol=1e-14)
    raw = portable_uniform((9, 4), -1.0, 1.0, 5, "sketch", "omega", "layer.0.query")
    np.testing.assert_allclose(omega @ (omega.T @ raw), raw, atol=1e-14)
    assert np.all(np.diag(omega.T @ raw) > 0)
    assert np.abs(omega - sketch_matrices("layer.1.query", 12, 9, 4, 5)[0]).max() > 0.1
    assert np.abs(omega - sketch_matrices("layer.0.query", 12, 9, 4, 6)[0]).max() > 0.1
    assert np.abs(np.subtract(*sketch_matrices("m", 8, 8, 4, 5))).max() > 0.1


def test_a_width_that_does_not_exist_is_refused() -> None:
    for width in (0, 10):
        with pytest.raises(StrategyError, match=rf"'m' \(12 × 9\) cannot be {width} columns wide"):
            sketch_matrices("m", 12, 9, width, 0)


def flat(sketches: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate([each.reshape(-1) for each in sketches.values()]).astype(np.float64)


def by_the_book(there: Scene, source: RandomSource, mechanism: DpSgd) -> NDArray[np.float64]:
    """The release unit by unit, record by record, with torch's own gradients."""
    pairs = sketch_pairs(there.adapted, WIDTH, SEED)
    total = torch.zeros(sum(p.y.numel() + p.z.numel() for p in pairs.values()), dtype=torch.float64)
    for unit in source.chosen(len(UNITS), mechanism.rate):
        vector = sum(by_hand(there, [int(row)], pairs) for row in UNITS.rows[unit])
        assert isinstance(vector, Tensor)
        total += vector * min(1.0, mechanism.bound / float(vector.norm()))
    std = mechanism.noise_multiplier * mechanism.bound * (1 + ROUNDING)
    return np.asarray((total.numpy() + std * source.normal(total.numel())) / mechanism.expected)


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_the_release_follows_the_algorithm(learn: Learn, micro_batch: int) -> None:
    there, learner = learn(micro_batch)
    found = noised_sketch(learner, UNITS, MECHANISM, WIDTH, SEED, seeded_source(1, "dp"))
    expected = by_the_book(there, seeded_source(1, "dp"), MECHANISM)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-6, atol=1e-7)
    loose = DpSgd(noise_multiplier=0.7, bound=50.0, rate=0.4, expected=8.0, steps=1)  # the negative control
    assert not np.allclose(by_the_book(there, seeded_source(1, "dp"), loose), expected, atol=1e-3)
    assert [*found] == [f"{module}.sketch_{side}" for module in there.adapted.layers for side in "YZ"]
    assert {(array.shape, str(array.dtype)) for array in found.values()} == {((32, WIDTH), "float32")}


def test_one_unit_moves_a_noiseless_sum_by_no_more_than_the_bound(learn: Learn) -> None:
    """Everybody is sampled, hardly any noise: what differs is one person with four records."""
    _, learner = learn()
    fewer = Units([unit for index, unit in enumerate(UNITS.rows) if index != 5])

    def moved(bound: float) -> float:
        mechanism = DpSgd(noise_multiplier=1e-9, bound=bound, rate=1.0, expected=1.0, steps=1)
        with_it, without = (
            flat(noised_sketch(learner, units, mechanism, WIDTH, SEED, no_sampling(seeded_source(1, "dp"))))
            for units in (UNITS, fewer)
        )
        return float(np.linalg.norm(with_it - without))

    assert 0.009 < moved(0.01) <= 0.01 * (1 + ROUNDING)
    assert moved(1e3) > 0.01 * (1 + ROUNDING)  # the negative control: without a clip it is more


def test_an_empty_sample_is_noise_of_the_size_that_is_paid_for(learn: Learn) -> None:
    _, learner = learn()
    never = DpSgd(noise_multiplier=0.7, bound=0.5, rate=2.0**-60, expected=8.0, steps=1)
    found = flat(noised_sketch(learner, UNITS, never, 8, SEED, seeded_source(1, "dp")))
    assert found.std() == pytest.approx(0.7 * 0.5 * (1 + ROUNDING) / 8.0, rel=0.06)
    noised_sketch(learner, Units([]), MECHANISM, WIDTH, SEED, seeded_source(1, "dp"))  # a client without units, too


def captured(there: Scene, bases: Bases, r: int) -> float:
    """Mean squared cosine of the angles between the bases and the mean gradient's first r singular vectors."""
    rows = [int(row) for unit in UNITS.rows for row in unit]
    found = []
    for module, gradient in weight_gradients(there, rows).items():
        u, _, vt = truncated_svd(gradient.numpy(), r)
        found += [np.linalg.norm(u.T @ bases[module][0]), np.linalg.norm(vt @ bases[module][1].T)]
    return float(np.mean(np.square(found))) / r


def test_the_bases_span_the_gradient_s_main_directions_unless_noise_drowns_them(learn: Learn) -> None:
    there, learner = learn()
    r = 4

    def bases(mechanism: DpSgd) -> Bases:
        found = noised_sketch(learner, UNITS, mechanism, r, SEED, no_sampling(seeded_source(1, "dp")))
        modules = there.adapted.layers
        return {m: bases_from_sketches(found[sketch_name(m, "Y")], found[sketch_name(m, "Z")]) for m in modules}

    loud = DpSgd(noise_multiplier=1e3, bound=1e3, rate=1.0, expected=1.0, steps=1)
    good, drowned = captured(there, bases(EVERYBODY), r), captured(there, bases(loud), r)
    assert good > 0.5
    assert drowned == pytest.approx(r / 32, abs=0.1)  # what random bases capture


def test_a_sketch_is_one_release(learn: Learn) -> None:
    _, learner = learn()
    three = DpSgd(noise_multiplier=0.7, bound=0.5, rate=0.4, expected=8.0, steps=3)
    with pytest.raises(PrivacyError, match="a sketch is one release, but steps = 3"):
        noised_sketch(learner, UNITS, three, WIDTH, SEED, seeded_source(1, "dp"))


def test_a_loss_that_is_not_one_a_record_is_refused(learn: Learn) -> None:
    _, learner = learn()
    mean: Any = SimpleNamespace(name="mean", losses=lambda *given: learner.task.losses(*given).mean())
    with pytest.raises(PrivacyError, match="needs one loss for each record"):
        noised_sketch(replace(learner, task=mean), UNITS, MECHANISM, WIDTH, SEED, seeded_source(1, "dp"))
