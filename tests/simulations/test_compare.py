"""Grouping of repeated seeds, and statistics against values computed by hand."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import StoreError
from fedlora.server.records import RunStatus
from fedlora.simulations.compare import Group, Summary, group_runs, mean_curve, tie
from fedlora.simulations.report.comparison import compare, shared_metric
from tests.simulations.histories import make_history


def test_summary_by_hand() -> None:
    # Mean 4; squared deviations 4 + 0 + 4 = 8; divided by n − 1 = 2 gives 4.
    assert Summary.of([2.0, 4.0, 6.0]) == Summary(4.0, 2.0, 3)
    assert Summary.of([0.5]) == Summary(0.5, None, 1)
    with pytest.raises(ValueError, match="no values"):
        Summary.of([])


def test_tie_by_hand() -> None:
    # Pooled: √((2·0.01² + 2·0.02²) / 4) = √0.00025 = 0.015811; two of them are 0.031623.
    a = Summary(0.90, 0.01, 3)
    assert tie(a, Summary(0.8685, 0.02, 3)) is True
    assert tie(a, Summary(0.8683, 0.02, 3)) is False
    # Unequal n: √((4·0.01² + 1·0.04²) / 5) = √0.0004 = 0.02; two of them are 0.04.
    assert tie(Summary(0.90, 0.01, 5), Summary(0.861, 0.04, 2)) is True
    assert tie(Summary(0.90, 0.01, 5), Summary(0.859, 0.04, 2)) is False


def test_tie_with_single_runs() -> None:
    single = Summary(0.9, None, 1)
    assert tie(single, Summary(0.885, 0.01, 3)) is True
    assert tie(single, Summary(0.875, 0.01, 3)) is False
    assert tie(single, Summary(0.9, None, 1)) is None


def test_tie_without_any_spread() -> None:
    assert tie(Summary(0.9, 0.0, 3), Summary(0.9, 0.0, 3)) is True
    assert tie(Summary(0.9, 0.0, 3), Summary(0.91, 0.0, 3)) is False


@given(
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.floats(0, 1) | st.none(),
    st.floats(0, 1) | st.none(),
)
def test_tie_is_symmetric(mean_a: float, mean_b: float, sd_a: float | None, sd_b: float | None) -> None:
    a = Summary(mean_a, sd_a, 1 if sd_a is None else 4)
    b = Summary(mean_b, sd_b, 1 if sd_b is None else 3)
    assert tie(a, b) == tie(b, a)


def test_grouping_by_configuration() -> None:
    runs = [
        make_history("fedavg", 1),
        make_history("fed_sb", 0),
        make_history("fedavg", 0, name="again", store="elsewhere", output="there"),
        make_history("fedavg", 2, train={"lr": 0.01, "optimizer": "adamw", "steps": 10, "batch": 16}),
    ]
    groups = group_runs(runs)
    assert [group.label for group in groups] == [
        "fedavg, train.lr=0.003",
        "fed_sb, train.lr=0.003",
        "fedavg, train.lr=0.01",
    ]
    assert [[run.run.seed for run in group.runs] for group in groups] == [[0, 1], [0], [2]]


def test_only_one_configuration_is_labelled_by_its_strategy() -> None:
    assert [group.label for group in group_runs([make_history(seed=s) for s in (0, 1)])] == ["fedavg"]


def test_configuration_that_is_no_json_is_named() -> None:
    history = make_history()
    broken = replace(history, run=replace(history.run, config="{"))
    with pytest.raises(StoreError, match=r"fedavg-trec6-0.*no JSON"):
        group_runs([broken])


def test_mean_curve_by_hand() -> None:
    x, y = mean_curve([({0: 0.0, 1: 10.0, 2: 20.0}, {0: 1.0, 1: 2.0, 2: 9.0}), ({0: 0.0, 1: 30.0}, {0: 3.0, 1: 6.0})])
    assert x == [0.0, 20.0]
    assert [s.mean for s in y] == [2.0, 4.0]
    assert [s.sd for s in y] == pytest.approx([math.sqrt(2), math.sqrt(8)])
    assert mean_curve([]) == ([], [])


def test_mean_curve_leaves_out_rounds_where_a_run_diverged() -> None:
    x, y = mean_curve([({1: 1.0, 2: 2.0}, {1: 0.5, 2: math.nan}), ({1: 1.0, 2: 2.0}, {1: 0.7, 2: 0.9})])
    assert x == [1.0]
    assert [s.n for s in y] == [2]


def test_group_summary_needs_finite_values() -> None:
    histories = [make_history(seed=s) for s in (0, 1)]
    values = [history.run.summary["test_accuracy"] for history in histories]
    summary = Group("x", histories).summary("test_accuracy")
    assert summary is not None
    assert summary.mean == pytest.approx(sum(values) / 2)
    assert Group("x", histories).summary("nothing") is None
    assert Group.over([math.nan, math.inf]) is None


def test_standings() -> None:
    runs = [make_history(name, seed, level=level) for name, level in LEVELS.items() for seed in range(3)]
    comparison = compare(group_runs(runs), "accuracy")
    assert comparison.quality == "test accuracy"
    assert {s.label: s.standing for s in comparison.standings} == {
        "fed_sb": "best",
        "lora_fair": "tie",
        "fedavg": "behind",
    }
    first = comparison.standings[0]
    # 12 rounds of 1.5 MB up and 1.55 MB down, and 73,728 bytes once; round 0 took no time, the others 3.4 s each.
    assert first.bytes == Summary(12 * 3_050_000 + 73_728, 0.0, 3)
    assert first.seconds is not None
    assert first.seconds.mean == pytest.approx(12 * 3.4)
    assert first.seeds == [0, 1, 2]


LEVELS = {"fed_sb": 0.91, "lora_fair": 0.909, "fedavg": 0.85}


def test_without_test_figures_the_last_validation_value_counts() -> None:
    finished = make_history("fedavg", 0)
    running = make_history("fed_sb", 0, level=0.5, status=RunStatus.RUNNING)
    comparison = compare(group_runs([finished, running]), "accuracy")
    assert comparison.quality == "last validation accuracy"
    assert comparison.standings[0].quality == Summary(finished.rounds[-1].metrics["validation_accuracy"], None, 1)
    # One seed on each side: whatever the difference, nothing is known about its size.
    assert [standing.standing for standing in comparison.standings] == ["best", "not judged"]


def test_runs_of_different_tasks_are_not_compared() -> None:
    words = make_history("fedavg", 0)
    tokens = replace(words, run=replace(words.run, id="other", summary={"test_token_accuracy": 0.5}))
    with pytest.raises(StoreError, match=r"different things: accuracy .*, token accuracy \(run other\)"):
        shared_metric([words, tokens])
