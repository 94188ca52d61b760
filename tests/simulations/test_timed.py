"""Rounds in virtual time: who counts, when they end, who is trained; against a simulation of events by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedlora.config.buffering import buffer_size
from fedlora.config.schema import RunConfig
from fedlora.errors import QuorumError, RunError
from fedlora.server.cohort import asking_order, draw_cohort
from fedlora.server.committing import at_work
from fedlora.server.events import RoundRetried
from fedlora.server.records import Outcome
from tests.simulations.timed_runs import KilledError, TimedRun, busy_of, same_bits, virtual_config

SPREAD = {"speed_spread": 1.0}


def counted(run: TimedRun, number: int) -> list[int]:
    return [row.client for row in run.records[number - 1].roster if row.outcome is Outcome.REPORTED]


def test_a_round_lasts_as_long_as_its_slowest_client_and_says_so() -> None:
    run = TimedRun(virtual_config(**SPREAD)).run()
    time = 0.0
    for number, told in enumerate(run.times, start=1):
        took = {client: busy_of(run.config, client) for client in draw_cohort(run.config, number)}
        time += max(took.values())
        assert told == pytest.approx(time)
        assert {c: row.metrics["virtual_seconds"] for c, row in run.rows(number).items()} == pytest.approx(took)
    assert run.committed[0].record.metrics["virtual_seconds"] == 0
    committed = [event for event in run.events if event.event == "round_committed"]
    assert [event.metrics["virtual_seconds"] for event in committed] == [0.0, *run.times]


def test_a_deadline_that_nobody_misses_changes_no_bit() -> None:
    same_bits(TimedRun(virtual_config({"timeout": 1e6}, **SPREAD)).run(), TimedRun(virtual_config(**SPREAD)).run())


def test_who_would_be_late_is_lost_and_not_trained() -> None:
    run = TimedRun(virtual_config({"timeout": 1.0}, **SPREAD)).run()
    slow = {client for client in range(6) if busy_of(run.config, client) > 1.0}
    assert slow
    assert not slow & {client for client, _ in run.trained}
    for number in range(1, 5):
        for client, row in run.rows(number).items():
            assert row.outcome is (Outcome.LOST if client in slow else Outcome.REPORTED)
            assert not row.reason or "deadline came after 1 s (federation.timeout); it was not trained" in row.reason
        assert counted(run, number)


def test_over_selection_takes_the_first_that_come() -> None:
    run = TimedRun(virtual_config({"cohort": 2, "over_selection": 2.0}, **SPREAD)).run()
    before = 0.0
    for number, told in enumerate(run.times, start=1):
        asked = sorted(draw_cohort(run.config, number), key=lambda client: busy_of(run.config, client))
        assert len(asked) == 4
        assert counted(run, number) == sorted(asked[:2])
        assert told - before == pytest.approx(busy_of(run.config, asked[1]))
        late = [run.rows(number)[client] for client in asked[2:]]
        assert {row.outcome for row in late} == {Outcome.LATE}
        assert all("federation.over_selection" in row.reason for row in late)
        before = told
    assert len(run.trained) == 8


def test_over_selection_takes_another_one_for_who_fails() -> None:
    config = virtual_config({"cohort": 2, "over_selection": 2.0, "rounds": 1}, **SPREAD)
    asked = sorted(draw_cohort(config, 1), key=lambda client: busy_of(config, client))
    run = TimedRun(config, fails=frozenset(asked[:1])).run()
    assert counted(run, 1) == sorted(asked[1:3])
    assert run.rows(1)[asked[0]].outcome is Outcome.FAILED
    assert run.rows(1)[asked[3]].outcome is Outcome.LATE
    assert run.times == pytest.approx([busy_of(config, asked[2])])


def test_who_drops_out_is_missed_after_the_absence_that_is_allowed() -> None:
    config = virtual_config({"absence": 5.0, "min_reports": 1}, dropout=0.4, seed=3)
    run = TimedRun(config).run()
    dropped = [row for record in run.records for row in record.roster if row.outcome is Outcome.LOST]
    assert dropped
    assert len(dropped) < 16
    assert all("dropped out after 0." in row.reason and "of 1 s of work" in row.reason for row in dropped)
    ends = [b - a for a, b in zip([0.0, *run.times[:-1]], run.times, strict=True)]
    for number, took in enumerate(ends, start=1):
        lost = any(row.outcome is Outcome.LOST for row in run.rows(number).values())
        assert 5.0 < took < 6.0 if lost else took == pytest.approx(1.0)


def test_a_round_with_too_few_is_tried_again_in_virtual_seconds_and_others_drop_out() -> None:
    federation = {"min_reports": 4, "below_quorum": "retry", "retries": 200, "retry_wait": 30.0, "absence": 0.0}
    run = TimedRun(virtual_config({**federation, "rounds": 2}, dropout=0.5)).run()
    retried = [event for event in run.events if isinstance(event, RoundRetried)]
    assert retried
    assert 30.0 * len(retried) < run.times[-1] < 31.0 * len(retried) + 3.0


def test_nobody_there_fails_as_with_sites(tmp_path: Any) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"available": [[100, 200]]}\n' * 6)
    with pytest.raises(QuorumError, match=r"away until 100 s of virtual time: nobody waits longer than 5 s"):
        TimedRun(virtual_config({"absence": 5.0}, trace=trace)).run()
    federation = {"absence": 5.0, "below_quorum": "retry", "retry_wait": 98.0, "rounds": 1}
    run = TimedRun(virtual_config(federation, trace=trace)).run()
    assert run.times == [pytest.approx(197.0)]  # given up at once, tried again at 98 and 196


@dataclass
class ByHand:
    """FedBuff's rounds, event by event, for clients that are always there: rosters and times."""

    config: RunConfig
    rosters: list[dict[int, int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def run(self) -> "ByHand":
        federation, size = self.config.federation, buffer_size(self.config)
        now, open_works = 0.0, dict[int, tuple[float, int]]()
        for number in range(1, federation.rounds + 1):
            order, ended, taken = asking_order(self.config, number), set[int](), dict[int, int]()
            for client in [c for c, (_, begun) in open_works.items() if begun < number - federation.max_staleness]:
                del open_works[client]
                ended.add(client)
            deadline = now + (federation.timeout or 1e18)
            self._fill(open_works, ended, order, (now, number))
            while True:
                due = sorted((end, c) for c, (end, _) in open_works.items() if end <= now)
                for _, client in due[: size - len(taken)]:
                    taken[client] = number - open_works.pop(client)[1]
                    ended.add(client)
                if len(taken) >= size:
                    break
                self._fill(open_works, ended, order, (now, number))
                if not open_works or now >= deadline:
                    break
                now = min(deadline, min(end for end, _ in open_works.values()))
            if number == federation.rounds:
                taken |= {c: number - begun for c, (end, begun) in open_works.items() if end <= now}
            self.rosters.append(taken)
            self.times.append(now)
        return self

    def _fill(
        self, works: dict[int, tuple[float, int]], ended: set[int], order: Sequence[int], now: tuple[float, int]
    ) -> None:
        for client in order:
            if len(works) < self.config.federation.cohort and client not in works and client not in ended:
                works[client] = (now[0] + busy_of(self.config, client), now[1])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 50),
    spread=st.sampled_from([0.0, 0.5, 1.5]),
    cohort=st.integers(1, 6),
    size=st.integers(1, 6),
    oldest=st.integers(0, 4),
    timeout=st.sampled_from([None, None, 0.7, 3.0]),
)
def test_buffered_rounds_are_those_of_a_simulation_by_hand(
    seed: int, spread: float, cohort: int, size: int, oldest: int, timeout: float | None
) -> None:
    federation = {
        "cohort": cohort,
        "buffered": True,
        "buffer": size,
        "max_staleness": oldest,
        "timeout": timeout,
        "rounds": 6,
    }
    config = virtual_config(federation, seed=seed, speed_spread=spread)
    expected = ByHand(config).run()
    assume(all(expected.rosters))
    run = TimedRun(config).run()
    found = [
        {row.client: int(row.metrics["staleness"]) for row in record.roster if row.outcome is Outcome.REPORTED}
        for record in run.records
    ]
    assert found == expected.rosters
    assert run.times == pytest.approx(expected.times)
    assert sorted(run.trained) == sorted(set(run.trained))
    rows = [row for record in run.records for row in record.roster]
    assert len(run.trained) == sum("staleness" in row.metrics for row in rows)  # who had no answer was not trained


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 50),
    virtual=st.fixed_dictionaries(
        {
            "speed_spread": st.sampled_from([0.0, 1.0]),
            "availability": st.sampled_from([0.5, 0.8, 1.0]),
            "stay": st.just(3.0),
            "dropout": st.sampled_from([0.0, 0.3]),
        }
    ),
    over=st.sampled_from([1.0, 1.5]),
    timeout=st.sampled_from([None, 2.0]),
)
def test_nobody_late_is_counted_and_nobody_counted_is_late(
    seed: int, virtual: dict[str, Any], over: float, timeout: float | None
) -> None:
    if virtual["availability"] == 1.0:
        virtual = {name: value for name, value in virtual.items() if name != "stay"}
    federation = {"over_selection": over, "timeout": timeout, "absence": 2.0, "rounds": 3}
    run = TimedRun(virtual_config({**federation, "below_quorum": "retry", "retries": 50}, seed=seed, **virtual))
    try:
        run.run()
    except QuorumError:
        return
    before = 0.0
    for number, end in enumerate(run.times, start=1):
        rows = run.rows(number).values()
        arrived = [row for row in rows if row.outcome is Outcome.REPORTED]
        assert all(0 < row.metrics["virtual_seconds"] <= end - before + 1e-9 for row in arrived)
        assert all(row.metrics["virtual_seconds"] <= (timeout or 1e9) + 1e-9 for row in arrived)
        assert len(arrived) <= 4
        assert {row.outcome for row in rows} <= {Outcome.REPORTED, Outcome.LOST, Outcome.LATE}
        assert all(row.reason for row in rows if row.outcome is not Outcome.REPORTED)
        if any(row.outcome is Outcome.LATE for row in rows):
            assert len(arrived) == 4
        before = end


CAPRICIOUS = {"speed_spread": 1.0, "availability": 0.6, "stay": 3.0, "dropout": 0.2}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buffered", [True, False])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(seed: int, buffered: bool) -> None:
    federation = {"rounds": 6, "absence": 4.0, "below_quorum": "retry", "retry_wait": 1.0, "retries": 20}
    federation |= {"buffered": True, "buffer": 2} if buffered else {"timeout": 8.0}
    config = virtual_config(federation, seed=seed, **CAPRICIOUS)
    whole = TimedRun(config).run()
    left = 0
    for commits in range(7):
        killed = TimedRun(config, dies_after=commits)
        if commits < 6:
            with pytest.raises(KilledError):
                killed.run()
        else:
            killed = whole
        left += len(at_work(killed.committed[-1]))
        same_bits(TimedRun(config).resume(killed), whole)
    assert bool(left) is buffered


def test_a_resumed_run_refuses_another_trace(tmp_path: Any) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("speed\n" + "1\n" * 6)
    config = virtual_config(trace=trace)
    killed = TimedRun(config, dies_after=1)
    with pytest.raises(KilledError):
        killed.run()
    trace.write_text("speed\n" + "2\n" * 6)
    with pytest.raises(RunError, match=r"virtual\.trace: the file is not the one"):
        TimedRun(config).resume(killed)


def test_a_buffered_round_does_not_wait_for_who_is_away(tmp_path: Any) -> None:
    """Clients 0 and 1 are there; the others come at 10 s, and are asked then."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"available": [[0, 1000]]}\n' * 2 + '{"available": [[10, 1000]]}\n' * 4)
    federation = {"buffered": True, "buffer": 2, "cohort": 2, "rounds": 12, "absence": 0.0}
    run = TimedRun(virtual_config(federation, trace=trace)).run()
    assert run.times == pytest.approx(range(1, 13))
    assert [counted(run, number) for number in range(1, 11)] == [[0, 1]] * 10
    assert {client for client, _ in run.trained} != {0, 1}


def test_a_client_that_comes_is_asked_at_once(tmp_path: Any) -> None:
    """One of two at work has left, so there is a place: who comes gets it, between the ends of works."""
    trace = tmp_path / "trace.jsonl"
    federation = {"buffered": True, "buffer": 1, "cohort": 2, "rounds": 1, "absence": 20.0}
    slow, leaves, comes = asking_order(virtual_config(federation), 1)[:3]
    lines = ['{"available": []}'] * 6
    lines[slow] = '{"available": [[0, 1000]], "speed": 0.1}'
    lines[leaves] = '{"available": [[0, 0.5]]}'
    lines[comes] = '{"available": [[0, 0.25], [3, 1000]], "speed": 0.5}'
    trace.write_text("\n".join(lines) + "\n")
    run = TimedRun(virtual_config(federation, trace=trace)).run()
    assert run.times == [pytest.approx(5.0)]
    assert counted(run, 1) == [comes]


def test_a_hundred_thousand_clients_cost_nothing_until_they_are_asked() -> None:
    config = virtual_config({"clients": 100_000, "cohort": 20, "rounds": 2}, availability=0.9, **SPREAD)
    run = TimedRun(config).run()
    assert sum(len(record.roster) for record in run.records) == 40
    assert run.forecast.devices.of.cache_info().misses <= 40
    assert run.forecast.devices.presence.cache_info().misses <= 40


def test_a_buffered_round_looks_at_no_more_clients_than_it_takes() -> None:
    federation = {"clients": 100_000, "cohort": 20, "rounds": 3, "buffered": True, "buffer": 10, "absence": 0.0}
    run = TimedRun(virtual_config(federation, availability=0.5, stay=100.0, **SPREAD)).run()
    assert run.forecast.devices.presence.cache_info().misses < 1000
