"""Updates are counted in in client order, whoever answers first, and their tensors are let go then."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from fedlora.server.admission import Verdict, refused
from fedlora.server.folding import Folding, InOrder, Rules
from fedlora.server.records import Outcome, RosterRow
from fedlora.strategies.base import State
from fedlora.strategies.fedavg import FedAvg
from fedlora.wire import Answer
from tests.strategies.worlds import setup  # the small world that strategies are tested in

METHOD = FedAvg()
CLIENTS = (1, 4, 5, 9)


@pytest.fixture
def state() -> State:
    return METHOD.start(setup())


def verdict(state: State, client: int) -> Verdict:
    draw = np.random.default_rng(client)
    tensors = {name: draw.standard_normal(each.shape).astype(each.dtype) for name, each in state.shared.items()}
    row = RosterRow(client, Outcome.REPORTED)
    return Verdict(row, Answer("r", 1, client, tensors, samples=client, metrics={"loss": float(client)}))


def after(state: State, order: Sequence[int], lost: int | None = None, by_samples: bool = True) -> State:
    folding = Folding(METHOD, state, Rules(by_samples, measured=True))
    in_order = InOrder(CLIENTS, folding)
    taken = [in_order.take(c, refused(c, Outcome.LOST, "gone") if c == lost else verdict(state, c)) for c in order]
    answers = [each.answer for each in taken if each.answer is not None]
    assert all(not answer.tensors for answer in answers)
    return folding.finish(answers)[0]


@pytest.mark.parametrize("lost", [None, 1, 5, 9])
def test_any_order_gives_the_same_bits(state: State, lost: int | None) -> None:
    expected = after(state, CLIENTS, lost)
    for order in itertools.permutations(CLIENTS):
        found = after(state, order, lost)
        assert all(np.array_equal(found.shared[name], each) for name, each in expected.shared.items())


def test_updates_weigh_as_the_rules_say(state: State) -> None:
    name = next(iter(state.shared))
    for by_samples in (True, False):
        weights = [client if by_samples else 1 for client in CLIENTS]
        answers = [verdict(state, client).answer for client in CLIENTS]
        values = [answer.tensors[name] for answer in answers if answer is not None]
        expected = np.average(np.stack(values).astype(np.float64), axis=0, weights=weights)
        found = after(state, CLIENTS, by_samples=by_samples).shared[name]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_only_those_that_overtook_another_are_kept(state: State) -> None:
    folding = Folding(METHOD, state, Rules(True, measured=False))
    in_order = InOrder(CLIENTS, folding)
    for client in (9, 4):
        in_order.take(client, verdict(state, client))
    assert set(in_order._waiting) == {9, 4}
    in_order.take(1, verdict(state, 1))
    assert set(in_order._waiting) == {9}
    in_order.take(5, refused(5, Outcome.LOST, "gone"))
    assert not in_order._waiting


def test_an_error_is_told_where_the_round_is_measured(state: State) -> None:
    for measured in (True, False):
        folding = Folding(METHOD, state, Rules(True, measured))
        answer = verdict(state, 1).answer
        assert answer is not None
        folding.add(answer)
        assert ("aggregation_error" in folding.finish([answer])[1]) is measured
