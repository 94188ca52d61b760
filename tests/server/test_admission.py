"""The admission gate: a bad answer costs its sender, with a reason; an honest one passes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message, MessageType, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec
from fedlora.config.schema import FederationConfig
from fedlora.flower_internals import identify
from fedlora.server import admission
from fedlora.server.admission import (
    LATE_CODE,
    LOST_CODE,
    UNREADABLE_CODE,
    Expected,
    Verdict,
    admit,
    update_norm,
)
from fedlora.server.records import Outcome, RosterRow
from fedlora.wire import Answer, write_answer, write_declined

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


def with_figures(**metrics: float) -> Message:
    """An honest answer as it comes from an engine that does not look at figures; the link leaves such out by itself."""
    identify(1)
    message = Message(write_answer(HONEST), reply_to=asked())
    message.content["metrics"] = MetricRecord({"num-examples": 17, **metrics})
    return message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_are_not_finite_reach_nobody(value: float) -> None:
    verdict = admit(with_figures(loss=value, seconds=value, holdout_rows=value, x=1.0), 1, EXPECTED)
    assert verdict.row == RosterRow(1, Outcome.REPORTED, samples=17, bytes_up=320, metrics={"x": 1.0})
    assert verdict.answer is not None
    assert verdict.answer.metrics == {"x": 1.0}  # nor a round's averages


def test_a_time_below_zero_is_none() -> None:
    assert admit(with_figures(seconds=-5.0), 1, EXPECTED).row.seconds == 0.0


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_of_a_roster_is_finite(value: float) -> None:
    row = admit(with_figures(seconds=value, loss=value), 1, EXPECTED).row
    assert all(map(math.isfinite, [row.seconds, row.samples, row.bytes_up, *row.metrics.values()]))


def test_a_norm_that_is_no_number_is_not_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "update_norm", lambda *arguments: math.nan)
    verdict = judge(HONEST, replace(EXPECTED, rules=FederationConfig(max_update_norm=1e9)))
    assert (verdict.answer, verdict.row.outcome) == (None, Outcome.REJECTED)
    assert "norm is nan" in verdict.row.reason


EVIL = "\x1b[2J\x1b]0;owned\x07no\nERROR all is lost\r\u202edetcejer\u2066\u200b\x9b31m\u2028\0"


@pytest.mark.parametrize("code", [2, LOST_CODE, UNREADABLE_CODE, LATE_CODE])
def test_what_an_error_says_is_one_short_line_on_the_roster(code: int) -> None:
    identify(1)
    row = admit(Message(Error(code, EVIL * 100), reply_to=asked()), 1, EXPECTED).row
    assert row.reason.isprintable()
    assert "ERROR all is lost" in row.reason
    assert len(row.reason) < 1100


def test_why_a_client_declines_is_one_short_line_on_the_roster() -> None:
    identify(1)
    row = admit(Message(write_declined(EVIL * 100), reply_to=asked()), 1, EXPECTED).row
    assert (row.outcome, len(row.reason), row.reason.isprintable()) == (Outcome.DECLINED, 1000, True)


@pytest.mark.parametrize("name", [EVIL, "n" * 501])
def test_a_figure_whose_name_would_harm_a_log_costs_the_round(name: str) -> None:
    row = admit(with_figures(**{name: 1.0}), 1, EXPECTED).row
    assert row.outcome is Outcome.REJECTED
    assert row.reason.isprintable()


def test_more_figures_than_anybody_needs_cost_the_round() -> None:
    row = admit(with_figures(**{f"x{number}": 1.0 for number in range(201)}), 1, EXPECTED).row
    assert (row.outcome, row.metrics) == (Outcome.REJECTED, {})


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
