"""Buffered rounds in a configuration: the size of the buffer, and what contradicts it."""

import pytest

from fedlora.config.buffering import buffer_size
from fedlora.config.compose import compose
from fedlora.errors import ConfigError
from fedlora.server.submitted import for_sites

SITES = [f"ward-{letter}" for letter in "abcdef"]
ON = "federation.buffered=true"


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], 3),
        (["federation.cohort=10", "federation.clients=20"], 5),
        (["federation.cohort=9"], 5),
        (["federation.min_reports=5"], 5),
        (["federation.buffer=4"], 4),
        (["federation.cohort=1"], 1),
    ],
)
def test_the_buffer_is_half_of_the_cohort_if_not_said_otherwise(overrides: list[str], size: int) -> None:
    assert buffer_size(compose([ON, *overrides])) == size


@pytest.mark.parametrize(
    ("overrides", "size"),
    [(["federation.cohort=2"], 3), (["federation.cohort=2", "federation.release_few=true"], 1)],
)
def test_without_dp_it_hides_each_site(overrides: list[str], size: int) -> None:
    assert buffer_size(for_sites(compose([ON, *overrides]), SITES)) == size


@pytest.mark.parametrize("strategy", ["fedavg", "ffa_lora", "fed_sb"])
def test_what_is_right_passes(strategy: str) -> None:
    for privacy in ([], ["privacy=dp", "privacy.epsilon=3"]):
        for_sites(compose([ON, f"strategy={strategy}", *privacy]), SITES)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["federation.buffer=3"], "federation.buffer = 3 has no meaning in rounds that wait"),
        ([ON, "federation.buffer=11"], "federation.buffer = 11 is never full"),
        ([ON, "federation.buffer=4", "federation.min_reports=5"], "min_reports = 5 can never be reached: a round is"),
        ([ON, "strategy=lora_fair"], "strategy=lora_fair: it cannot use an update that was begun in an earlier round"),
        ([ON, "privacy=central", "privacy.epsilon=3"], "federation.buffered = true with privacy=central"),
        ([ON, "federation.over_selection=1.5"], "federation.over_selection = 1.5 has no meaning"),
    ],
)
def test_each_contradiction_is_found_once(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert [said in problem for problem in caught.value.problems] == [True]


@pytest.mark.parametrize(
    ("overrides", "sites", "said"),
    [
        (["federation.buffer=2"], 6, "federation.buffer = 2: without DP each of so few sites could work out"),
        ([], 2, "federation.buffer = 3 is never full: .* federation.release_few=true"),
        (["federation.buffer=5"], 4, "federation.buffer = 5 is never full: .* there are 4"),
    ],
)
def test_contradictions_between_sites(overrides: list[str], sites: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        for_sites(compose([ON, *overrides]), SITES[:sites])
    assert len(caught.value.problems) == 1


def test_a_cohort_of_two_is_fine_where_three_are_averaged() -> None:
    assert for_sites(compose([ON, "federation.cohort=2"]), SITES).federation.cohort == 2
