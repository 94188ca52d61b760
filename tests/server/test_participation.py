"""Which sites a run was trained with."""

import json
from dataclasses import replace

from fedlora.server.participation import Share, participation, warning
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunHistory
from fedlora.simulations.report.page import outcome_sentence
from tests.simulations.histories import make_history


def with_sites(*outcomes: tuple[Outcome, ...]) -> RunHistory:
    """A finished history of sites a, b, … whose outcomes in rounds 1, 2, … are given."""
    history = make_history(rounds=len(outcomes), bad={})
    sites = ["a", "b", "c"][: len(outcomes[0])]
    rounds = [
        RoundRecord(number, {}, [RosterRow(client, outcome) for client, outcome in enumerate(row)])
        for number, row in enumerate(outcomes, 1)
    ]
    run = replace(history.run, config=json.dumps({"federation": {"sites": sites}}), rounds_done=len(outcomes))
    return RunHistory(run, [RoundRecord(0, {}, ()), *rounds])


def test_each_sites_share() -> None:
    history = with_sites((Outcome.REPORTED, Outcome.LOST), (Outcome.REPORTED, Outcome.REPORTED))
    assert participation(history) == [Share("a", 2, 2), Share("b", 2, 1)]
    assert warning(history) == ""


def test_a_run_on_a_subset_says_so_first() -> None:
    history = with_sites(
        (Outcome.REPORTED, Outcome.LOST, Outcome.REJECTED), (Outcome.REPORTED,) * 1 + (Outcome.LOST,) * 2
    )
    assert warning(history).startswith("Trained without b, c:")
    assert outcome_sentence(history).startswith("Trained without b, c:")


def test_virtual_clients_have_no_names() -> None:
    history = make_history(rounds=3, bad={})
    assert participation(history) == []
    assert warning(history) == ""
