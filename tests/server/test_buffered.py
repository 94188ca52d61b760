"""Buffered rounds with scripted clients: who is waited for, what counts, what is told, and that it always ends."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.errors import QuorumError, StoreError
from fedlora.server.checkpoint import Checkpoint
from fedlora.server.cohort import to_ask
from fedlora.server.committing import at_work
from fedlora.server.events import ClientRefused, RoundRetried, RoundStarted
from fedlora.server.records import Outcome, RoundRecord
from tests.server.scripted import (
    NEVER,
    Script,
    Scripted,
    Turn,
    check_rosters,
    check_states,
    first_state,
    scripted,
    ticking,
)


def all_report(client: int, number: int) -> Turn:
    return Turn(1 + client)


def slow(client: int, ticks: int) -> Script:
    """One client takes long each time."""
    return lambda asked, number: Turn(ticks if asked == client else 1)


def rows(run: Scripted, number: int) -> dict[int, Any]:
    return {row.client: row for row in run.records[number - 1].roster}


def test_the_fast_do_not_wait_and_the_slow_ones_update_counts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ticking(monkeypatch, scripted(slow(2, 3), cohort=6, buffer=3, rounds=6)).run()
    assert [len(record.roster) for record in run.records[:-1]] == [3] * 5
    counted = {n: row for n in range(1, 7) for c, row in rows(run, n).items() if c == 2 and row.outcome == "reported"}
    assert counted
    assert max(row.metrics["staleness"] for row in counted.values()) >= 1
    check_rosters(run)
    check_states(run)
    assert {name for event in run.events for name in [event.event]} >= {"round_started", "client_reported"}


def test_what_is_not_stale_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everybody in every round it is the synchronous round, bit for bit."""
    script = all_report
    one = ticking(monkeypatch, scripted(script, cohort=6, buffer=6)).run()
    two = ticking(monkeypatch, scripted(script, cohort=6, buffered=False)).run()
    for left, right in zip(one.committed, two.committed, strict=True):
        for name, array in right.state.shared.items():
            assert left.state.shared[name].tobytes() == array.tobytes()
    assert all(row.metrics["staleness"] == 0 for record in one.records for row in record.roster)


def test_no_more_than_the_cohort_are_at_work_and_a_round_tells_who_is(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ticking(monkeypatch, scripted(all_report, cohort=2, buffer=3)).run()
    assert run.grid.most == 2
    assert [len(record.roster) >= 3 for record in run.records] == [True] * 4
    started = [event for event in run.events if isinstance(event, RoundStarted)]
    assert [event.round for event in started] == [1, 2, 3, 4]
    assert all(len(event.cohort) == 2 for event in started)
    check_states(run)


def test_a_client_is_asked_at_most_once_in_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ticking(monkeypatch, scripted(lambda client, number: Turn(1 + (client * number) % 3), rounds=6)).run()
    assert len(run.grid.asked) == len(set(run.grid.asked))
    for client in range(6):
        asked = [number for name, number in run.grid.asked if name == client]
        assert asked == sorted(asked)
    check_states(run)


def test_what_is_too_old_is_withdrawn_and_named_late(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ticking(monkeypatch, scripted(slow(0, NEVER), cohort=6, buffer=3, rounds=5, max_staleness=1)).run()
    late = rows(run, 3)[0]
    assert late.outcome is Outcome.LATE
    assert "begun in round 1, more than federation.max_staleness=1 rounds before round 3" in late.reason
    assert late.reason in run.grid.withdrawn.values()
    assert (0, 4) in run.grid.asked  # it may try again
    assert (0, 3) not in run.grid.asked
    check_rosters(run)


def test_an_answer_that_came_too_old_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there, unread, when its time was over."""
    ends = {(0, 1): 3, (1, 1): 3, (2, 1): 3, (3, 1): 3, (4, 1): 3, (5, 1): 3}
    script: Script = lambda client, number: Turn(ends.get((client, number), 1))  # noqa: E731
    run = ticking(monkeypatch, scripted(script, cohort=6, buffer=3, rounds=3, max_staleness=0)).run()
    refused = [row for row in run.records[1].roster if row.outcome is Outcome.LATE]
    assert len(refused) == 3
    assert all(row.metrics["staleness"] == 1 and row.bytes_up for row in refused)
    assert all(row.metrics["staleness"] == 0 for row in run.records[1].roster if row.outcome is Outcome.REPORTED)
    check_states(run)


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("declines", Outcome.DECLINED),
        ("fails", Outcome.FAILED),
        ("is lost", Outcome.LOST),
        ("replays", Outcome.REJECTED),
    ],
)
def test_who_does_not_report_costs_the_round_nothing(
    monkeypatch: pytest.MonkeyPatch, how: str, outcome: Outcome
) -> None:
    script: Script = lambda client, number: Turn(1, how if client < 2 else "reports")  # noqa: E731
    run = ticking(monkeypatch, scripted(script, cohort=3, buffer=3)).run()
    found = {row.outcome for record in run.records for row in record.roster if row.client < 2}
    assert found == {outcome}
    assert all(sum(row.outcome is Outcome.REPORTED for row in record.roster) >= 3 for record in run.records)
    check_rosters(run)
    check_states(run)


def test_an_update_is_held_against_the_round_that_it_was_asked_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is counted later; what names another round is refused."""
    script: Script = lambda client, number: Turn(4, "replays") if client == 0 else Turn(1)  # noqa: E731
    run = ticking(monkeypatch, scripted(script, cohort=6, buffer=3, rounds=6)).run()
    refused = [row for record in run.records for row in record.roster if row.outcome is Outcome.REJECTED]
    assert refused
    assert all(row.client == 0 and "but round" in row.reason for row in refused)


def test_a_round_whose_time_is_up_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = lambda client, number: Turn(1 if client in (1, 2, 3) else 50)  # noqa: E731
    run = ticking(monkeypatch, scripted(script, cohort=6, buffer=5, timeout=10.0, rounds=2)).run()
    assert sorted(rows(run, 1)) == [1, 2, 3]
    assert run.grid.ticks < 50
    late = [row for row in rows(run, 2).values() if row.outcome is Outcome.LATE]
    assert [row.client for row in late] == [0, 4, 5]
    assert all("last round" in row.reason for row in late)


def test_too_few_in_time_fail_the_run_and_are_named_with_who_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = lambda client, number: Turn(1, "declines") if client == 0 else Turn(NEVER)  # noqa: E731
    run = ticking(monkeypatch, scripted(script, cohort=6, timeout=5.0))
    with pytest.raises(QuorumError, match=r"0 of 1 updates .*client 0: not today; client 1: still at work; client 2"):
        run.run()
    assert any(isinstance(event, ClientRefused) for event in run.events)
    assert set(run.grid.withdrawn.values()) == {"the run has ended, or was stopped"}


def test_a_retry_keeps_what_was_admitted_and_asks_the_others_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(client: int, number: int) -> Turn:
        first = run.grid.asked.count((client, number)) == 1
        return Turn(1, "declines" if client < 4 and first else "reports")

    run = scripted(script, cohort=6, buffer=4, min_reports=4, below_quorum="retry", retries=1, retry_wait=1.0, rounds=1)
    ticking(monkeypatch, run).run()
    (retried,) = [event for event in run.events if isinstance(event, RoundRetried)]
    assert "2 of 6 updates were admitted" in retried.reason
    assert sorted(run.grid.asked[6:]) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert {row.outcome for row in run.records[0].roster} == {Outcome.REPORTED}
    check_states(run)


def test_if_nobody_can_be_asked_any_more_what_is_there_counts_or_fails_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script: Script = lambda client, number: Turn(1, "reports" if client < 3 else "declines")  # noqa: E731
    run = ticking(monkeypatch, scripted(script, buffer=5)).run()
    assert all(len(record.roster) == 6 for record in run.records)
    script = lambda client, number: Turn(1, "reports" if client < 2 else "declines")  # noqa: E731
    with pytest.raises(QuorumError, match="what hides a single site"):
        ticking(monkeypatch, scripted(script, buffer=5)).run()


def test_the_last_round_names_who_was_still_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ticking(monkeypatch, scripted(slow(4, NEVER), cohort=6, buffer=3, rounds=2)).run()
    assert rows(run, 2)[4].outcome is Outcome.LATE
    assert not at_work(run.committed[-1])


def test_connected_sites_come_first_and_one_that_is_away_takes_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = lambda client, number: Turn(NEVER if client > 2 else 1)  # noqa: E731
    run = scripted(script, cohort=4, buffer=3)
    run.present = lambda: [2, 3, 4]
    ticking(monkeypatch, run).run()
    assert all({0, 1, 2} <= set(rows(run, number)) for number in range(1, 5))


@pytest.mark.parametrize(
    ("at_work_now", "there", "expected"),
    [
        ([], {0, 1, 2, 3, 4}, [1, 4]),
        ([], {0}, [0, 4]),
        ([], set(), [1, 4]),
        ([9], {0, 1, 2, 3, 4, 9}, [4]),
        ([9], {0, 1, 2, 3, 4}, [1, 4]),
        ([8, 9], {0, 1, 2, 3, 4, 8, 9}, []),
        ([8, 9], set(), []),
    ],
)
def test_who_is_asked(at_work_now: list[int], there: set[int], expected: list[int]) -> None:
    assert to_ask([4, 1, 0, 3, 2], at_work_now, there, 2) == expected


def test_a_stop_ends_the_run_after_its_round_and_withdraws_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    run = scripted(slow(0, NEVER), cohort=6, buffer=3)
    run.stop = lambda: len(run.committed) >= 2
    ticking(monkeypatch, run).run()
    assert len(run.records) in (1, 2)
    assert run.grid.withdrawn
    assert at_work(run.committed[-1])[0] == 1


class Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


def killed_after(run: Scripted, count: int) -> None:
    """Ends `run` in the instant after its commit number `count`."""

    def emit(event: Any) -> None:
        run.events.append(event)
        if len(run.committed) > count:
            raise Killed

    real = run.loop
    run.loop = lambda state: _emitting(real(state), emit)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.run()


def _emitting(loop: Any, emit: Any) -> Any:
    object.__setattr__(loop.links, "emit", emit)
    return loop


def test_after_a_kill_who_was_at_work_goes_on_with_it_and_nothing_counts_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script: Script = lambda client, number: Turn(4 if client in (0, 1) else 1)  # noqa: E731
    before = ticking(monkeypatch, scripted(script, cohort=6, buffer=3, rounds=6))
    killed_after(before, 2)
    left = at_work(before.committed[-1])
    assert left
    after = ticking(monkeypatch, scripted(script, cohort=6, buffer=3, rounds=6)).resume(before)
    assert after.grid.asked[: len(left)] == sorted(left.items(), key=lambda each: (each[1], each[0]))
    assert after.tidied == 1
    assert len(after.records) == 6
    check_rosters(after)
    check_states(after)
    stale = [row.metrics["staleness"] for record in after.records[2:] for row in record.roster]
    assert max(stale) >= 1


def test_a_work_whose_start_is_lost_is_given_up_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = ticking(monkeypatch, scripted(slow(0, 9), cohort=6, buffer=3))
    killed_after(before, 2)
    after = scripted(slow(0, 9), cohort=6, buffer=3)
    real = after.loop

    def loop(state: Any) -> Any:
        made = real(state)
        resume = made.resume
        made.resume = lambda checkpoint, state_after: resume(checkpoint, lost)
        return made

    def lost(number: int) -> Any:
        raise StoreError(f"round {number} is damaged")

    after.loop = loop  # type: ignore[method-assign]
    ticking(monkeypatch, after).resume(before)
    assert "the works of round 1, of clients 0, are given up: round 0 is damaged" in caplog.text
    assert len(after.records) == 4


def test_a_checkpoint_that_starts_another_run_has_nobody_at_work() -> None:
    state = first_state()
    noted = {"seed": 0, "next_round": 4, "at_work": {"5": 1, "2": 3}}
    assert at_work(Checkpoint(3, state, RoundRecord(3, {}, ()), {}, noted)) == {5: 1, 2: 3}
    assert at_work(Checkpoint(0, state, RoundRecord(0, {}, ()), {}, noted)) == {}
    assert at_work(Checkpoint(3, state, RoundRecord(3, {}, ()))) == {}


def test_a_version_is_committed_before_anyone_under_local_dp_is_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, ahead in (("none", True), ("dp", False)):
        run = scripted(all_report, cohort=6, buffer=3, rounds=2)
        privacy = run.config.privacy.model_copy(update={"name": name})
        run.config = run.config.model_copy(update={"privacy": privacy})
        committed_when_asked: dict[int, int] = {}
        real = run.grid.push_messages

        def push(messages: Any) -> Any:
            messages = list(messages)
            number = int(messages[0].metadata.group_id)
            committed_when_asked.setdefault(number, len(run.committed))  # noqa: B023
            return real(messages)  # noqa: B023

        monkeypatch.setattr(run.grid, "push_messages", push)
        ticking(monkeypatch, run).run()
        assert committed_when_asked == ({1: 0, 2: 1} if ahead else {1: 1, 2: 2})


TURNS = st.builds(
    Turn, st.integers(1, 9), st.sampled_from(["reports", "reports", "reports", "declines", "fails", "is lost"])
)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.dictionaries(st.tuples(st.integers(0, 5), st.integers(1, 4)), TURNS),
    buffered=st.booleans(),
    cohort=st.integers(3, 6),
    size=st.integers(3, 6),
    oldest=st.integers(0, 3),
    timeout=st.sampled_from([None, 2.0, 6.0]),
    below=st.sampled_from(["fail", "retry"]),
)
def test_every_run_ends_and_counts_each_work_once(
    turns: dict[tuple[int, int], Turn],
    buffered: bool,
    cohort: int,
    size: int,
    oldest: int,
    timeout: float | None,
    below: str,
) -> None:
    run = scripted(
        lambda client, number: turns.get((client, number), Turn(1 + client % 3)),
        buffered=buffered,
        buffer=size if buffered else None,
        cohort=cohort,
        max_staleness=oldest,
        timeout=timeout,
        below_quorum=below,
        retries=2,
        retry_wait=1.0,
    )
    with pytest.MonkeyPatch.context() as patch:
        try:
            ticking(patch, run).run()
        except QuorumError:
            assert len(run.records) < 4
        else:
            assert len(run.records) == 4
    if not buffered:
        return
    assert run.grid.most <= cohort
    check_rosters(run)
    check_states(run)
    for record in run.records[:-1]:
        assert 3 <= sum(row.outcome is Outcome.REPORTED for row in record.roster) <= size
