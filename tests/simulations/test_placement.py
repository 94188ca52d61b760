"""Every group is in exactly one call; where times are known, the last ones go singly, the longest first."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from fedlora.simulations.placement import LAST, SHARD, WORTH, Placement

GROUPS = st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=3), max_size=150)


@given(groups=GROUPS, workers=st.integers(1, 5), seconds=st.dictionaries(st.integers(0, 300), st.floats(1e-4, 10)))
def test_each_group_is_in_one_call(groups: list[list[int]], workers: int, seconds: dict[int, float]) -> None:
    placement = Placement(workers)
    for client, taken in seconds.items():
        placement.learn([client], taken)
    calls = placement.calls(groups)
    assert sorted(place for call in calls for place in call) == list(range(len(groups)))
    assert all(0 < len(call) <= SHARD for call in calls)


def test_before_anything_is_known_groups_go_in_their_order() -> None:
    calls = Placement(2).calls([[client] for client in range(20)])
    assert [place for call in calls for place in call] == list(range(20))
    assert len(calls[0]) > 1


def test_the_longest_go_first_and_unknown_ones_count_as_the_mean() -> None:
    placement = Placement(2)
    placement.learn([0, 1], 2.0)
    placement.learn([2], 5.0)
    placement.learn([3], 0.5)
    assert placement.calls([[0], [1], [2], [3], [9]]) == [[2], [4], [0], [1], [3]]
    assert placement.calls([[0, 1], [2]]) == [[1], [0]]


def test_only_the_last_groups_of_many_are_reordered() -> None:
    placement = Placement(2)
    for client in range(1000):
        placement.learn([client], 0.1 + client / 1000)
    calls = placement.calls([[client] for client in range(1000)])
    assert [place for call in calls for place in call][: 1000 - LAST] == list(range(1000 - LAST))
    assert calls[-LAST:] == [[place] for place in range(999, 999 - LAST, -1)]


def test_clients_that_take_no_time_are_handed_over_together() -> None:
    placement = Placement(2)
    for client in range(20):
        placement.learn([client], WORTH / 2)
    assert len(placement.calls([[client] for client in range(20)])) < 10


@given(st.lists(st.floats(0.1, 1.0), min_size=4, max_size=30), st.integers(1, 4))
def test_no_worker_is_left_idle_for_longer_than_a_third_of_the_best_time(jobs: list[float], workers: int) -> None:
    """Graham (1969): the longest first takes at most 4/3 of the best possible time."""
    placement = Placement(workers)
    for client, seconds in enumerate(jobs):
        placement.learn([client], seconds)
    loads = [0.0] * workers
    for call in placement.calls([[client] for client in range(len(jobs))]):
        heapq.heapreplace(loads, loads[0] + sum(jobs[place] for place in call))
    best = max(sum(jobs) / workers, max(jobs), sum(sorted(jobs, reverse=True)[workers - 1 : workers + 1]))
    assert max(loads) <= 4 / 3 * best * 1.0001
