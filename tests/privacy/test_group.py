"""DP-SGD of a group gives each client what it gets alone: same samples, clips and noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from fedlora.client.worker import worker_for
from fedlora.privacy.dp_sgd import DpSgd, Learner, Units, private_steps
from fedlora.privacy.group import private_group_steps
from fedlora.privacy.randomness import RandomSource, seeded_source
from fedlora.privacy.rows import GradientRows
from fedlora.training.cohort.stack import Stack
from fedlora.training.local import trained_names
from tests.adapters.making import adapted_task, random_tensors
from tests.tiny import tiny_config

MECHANISM = DpSgd(noise_multiplier=0.7, bound=0.05, rate=0.4, expected=8.0, steps=3)
UNITS = [
    Units.of_records(np.arange(0, 30)),
    Units([np.array(rows) for rows in ([3], [11, 17, 4], [29], [40, 41], [8], [50, 51, 52, 53], [60])]),
    Units.of_records(np.arange(70, 72)),
]
"""Clients of unequal sizes: one with units of several rows, and one of which a step may sample nobody."""


@pytest.fixture(params=["lora", "ffa", "sb"])
def learner(request: pytest.FixtureRequest, tiny_bert: Path, tiny_text_csv: Path) -> Learner:
    """In float64, so that only rounding of the last digits can differ."""
    config = tiny_config(tiny_bert, tiny_text_csv)
    task, adapted = adapted_task(config, request.param)
    adapted.load(random_tensors(adapted.manifest))
    adapted.model.double()
    return Learner(adapted, task, worker_for(config).encoded("train"), micro_batch=5)


def starts(learner: Learner) -> list[dict[str, Any]]:
    names = trained_names(learner.adapted.manifest)
    drawn = [random_tensors(learner.adapted.manifest, seed=client) for client in range(len(UNITS))]
    return [{name: tensors[name].astype(np.float64) for name in names} for tensors in drawn]


def source_of(client: int) -> RandomSource:
    return seeded_source(7, "test", client)


def alone(learner: Learner, client: int, mechanism: DpSgd) -> dict[str, Any]:
    names = trained_names(learner.adapted.manifest)
    parameters = learner.adapted.parameters(names)
    with torch.no_grad():
        for parameter, (_, value) in zip(parameters, starts(learner)[client].items(), strict=True):
            parameter.copy_(torch.from_numpy(value))
    learner.adapted.set_trained(names)
    private_steps(learner, names, UNITS[client], mechanism, SGD(parameters, lr=0.3), source_of(client))
    return learner.adapted.read(names)


def together(
    learner: Learner, mechanism: DpSgd, clients: range, owned: Sequence[Units] = UNITS
) -> list[dict[str, Any]]:
    names = trained_names(learner.adapted.manifest)
    learner.adapted.set_trained([])
    rows = GradientRows(learner.adapted.parameters(names))
    begin = starts(learner)
    stack = Stack(learner.adapted, [begin[client] for client in clients], names, rows)
    with stack.in_place():
        units, sources = [owned[client] for client in clients], [source_of(client) for client in clients]
        private_group_steps(learner, stack, rows, units, mechanism, SGD(stack.trained, lr=0.3), sources)
    return stack.read_each(names)


@pytest.mark.parametrize("clients", [range(1), range(1, 3), range(3)])
def test_each_client_as_alone(learner: Learner, clients: range) -> None:
    found = together(learner, MECHANISM, clients)
    for place, client in enumerate(clients):
        for name, tensor in alone(learner, client, MECHANISM).items():
            np.testing.assert_allclose(found[place][name], tensor, rtol=1e-9, atol=1e-12)


def test_no_client_depends_on_another_ones_records(learner: Learner) -> None:
    """The negative control: its own records do matter."""
    first = together(learner, MECHANISM, range(3))
    second = together(learner, MECHANISM, range(3), [UNITS[0], Units.of_records(np.arange(100, 140)), UNITS[2]])
    for name in first[0]:
        np.testing.assert_allclose(first[0][name], second[0][name], rtol=1e-9, atol=1e-12)
        assert not np.allclose(first[1][name], second[1][name], rtol=1e-6)
        np.testing.assert_allclose(first[2][name], second[2][name], rtol=1e-9, atol=1e-12)


def test_a_group_whose_steps_sample_nobody_takes_steps_of_noise(learner: Learner) -> None:
    never = DpSgd(noise_multiplier=0.7, bound=0.05, rate=1e-9, expected=8.0, steps=2)
    found = together(learner, never, range(3))
    for client, begin in enumerate(starts(learner)):
        assert all(not np.array_equal(found[client][name], begin[name]) for name in begin)


def test_a_record_that_is_not_finite_costs_nobody_else(learner: Learner) -> None:
    """The others' releases are the same bits with it and without it, although it shares their pass."""
    everyone = DpSgd(noise_multiplier=0.7, bound=0.05, rate=1.0, expected=8.0, steps=1)
    others, own = Units.of_records(np.arange(70, 74)), Units.of_records(np.arange(40, 44))
    seen = learner.encoded.batch(range(70, 74))["input_ids"].unique().tolist()
    alien = next(token for token in learner.encoded.batch([40])["input_ids"][0].tolist() if token not in seen)
    sound = together(learner, everyone, range(2), [others, own])
    embedding = learner.adapted.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[alien] = torch.nan
    found = together(learner, everyone, range(2), [others, own])
    for name, tensor in sound[0].items():
        np.testing.assert_array_equal(found[0][name], tensor)
        assert np.isfinite(found[1][name]).all()
        assert not np.array_equal(found[1][name], sound[1][name])
