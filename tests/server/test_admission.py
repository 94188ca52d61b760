"""The admission gate: a bad answer costs its sender, with a reason; an honest one passes."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec
from fedlora.config.schema import FederationConfig
from fedlora.flower_internals import identify
from fedlora.server.admission import Expected, Verdict, admit, update_norm
from fedlora.server.records import Outcome
from fedlora.wire import Answer, write_answer

MANIFEST = Manifest(
    Form.LORA,
    r=2,
    scaling=2.0,
    seed=0,
    tensors={
        "m.lora_A": TensorSpec((2, 5), Role.A, "m", True, Delivery.ROUND),
        "m.lora_B": TensorSpec((3, 2), Role.B, "m", True, Delivery.ROUND),
    },
)
rng = np.random.default_rng(0)
BEFORE = {n: rng.standard_normal(s.shape).astype(np.float32) for n, s in MANIFEST.tensors.items()}
AFTER = {n: (a + 0.01).astype(np.float32) for n, a in BEFORE.items()}
HONEST = Answer("run", 3, 1, AFTER, 17, {"loss": 0.5, "seconds": 1.5})
EXPECTED = Expected("run", 3, MANIFEST, BEFORE, FederationConfig())


def judge(answer: Answer, expected: Expected = EXPECTED, client: int = 1) -> Verdict:
    identify(1)
    return admit(Message(write_answer(answer), reply_to=asked()), client, expected)


def asked() -> Message:
    return Message(RecordDict(), 12, MessageType.TRAIN)


def test_an_honest_answer_is_admitted_with_its_bytes_and_metrics() -> None:
    verdict = judge(HONEST)
    assert verdict.answer is not None
    assert (verdict.row.outcome, verdict.row.samples, verdict.row.seconds) == (Outcome.REPORTED, 17, 1.5)
    assert verdict.row.metrics == {"loss": 0.5}
    assert verdict.row.bytes_up == (10 + 6) * 4 + 2 * 128


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "other"}, "run 'other'"),
        ({"round": 2}, "round 2"),
        ({"client": 4}, "client 4"),
        ({"samples": 0}, "0 training rows"),
        ({"samples": -9}, "-9 training rows"),
        ({"samples": 10**12}, "1000000000000 training rows"),
        ({"tensors": {**AFTER, "m.lora_B": np.full((3, 2), np.nan, np.float32)}}, "6 values that are NaN"),
        ({"tensors": {**AFTER, "m.lora_A": np.full((2, 5), np.inf, np.float32)}}, "10 values that are NaN or inf"),
        ({"tensors": {"m.lora_A": AFTER["m.lora_A"]}}, "missing"),
    ],
)
def test_what_does_not_fit_is_rejected_with_its_reason(change: dict[str, object], reason: str) -> None:
    verdict = judge(replace(HONEST, **change))  # type: ignore[arg-type]
    assert verdict.answer is None
    assert verdict.row.outcome is Outcome.REJECTED
    assert reason in verdict.row.reason


def test_a_client_that_raised_has_failed() -> None:
    identify(1)
    verdict = admit(Message(Error(2, "ValueError: boom"), reply_to=asked()), 1, EXPECTED)
    assert (verdict.row.outcome, verdict.answer) == (Outcome.FAILED, None)
    assert "boom" in verdict.row.reason


def test_metrics_that_are_not_finite_are_left_out() -> None:
    assert judge(replace(HONEST, metrics={"loss": float("nan"), "x": 1.0})).row.metrics == {"x": 1.0}


def dense_norm() -> float:
    def dense(tensors: dict[str, np.ndarray]) -> np.ndarray:
        return 2.0 * tensors["m.lora_B"].astype(np.float64) @ tensors["m.lora_A"].astype(np.float64)

    return float(np.linalg.norm(dense(AFTER) - dense(BEFORE)))


def test_the_norm_of_an_update_is_that_of_the_dense_difference() -> None:
    assert update_norm(MANIFEST, BEFORE, AFTER) == pytest.approx(dense_norm(), rel=1e-10)


@pytest.mark.parametrize(("bound", "outcome"), [(1.001, Outcome.REPORTED), (0.999, Outcome.REJECTED)])
def test_the_norm_bound_is_on_the_product(bound: float, outcome: Outcome) -> None:
    rules = FederationConfig(max_update_norm=bound * dense_norm())
    assert judge(HONEST, replace(EXPECTED, rules=rules)).row.outcome is outcome


@given(factor=st.floats(0.01, 100))
def test_rescaling_one_factor_against_the_other_does_not_change_the_norm(factor: float) -> None:
    scaled = {"m.lora_A": AFTER["m.lora_A"] / np.float64(factor), "m.lora_B": AFTER["m.lora_B"] * np.float64(factor)}
    assert update_norm(MANIFEST, BEFORE, scaled) == pytest.approx(dense_norm(), rel=1e-6)
