"""`federation.sites`: who a run's clients are, and what then has no meaning."""

import pytest

from fedlora.config.compose import compose
from fedlora.errors import ConfigError

TWO = ["federation.clients=2", "federation.cohort=2", "federation.sites=[north,south]", "federation.release_few=true"]


def test_sites_have_numbers_in_their_order() -> None:
    assert compose(TWO).federation.sites == ("north", "south")
    assert compose([]).federation.sites == ()


def test_a_limit_on_the_servers_rows_is_no_limit_on_the_sites() -> None:
    compose([*TWO, "data.limit=2"])
    with pytest.raises(ConfigError, match=r"data\.limit = 2"):
        compose([*TWO[:2], "data.limit=2"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*TWO[1:], "federation.clients=3"], "federation.sites names 2 sites, and federation.clients = 3"),
        ([*TWO[:2], TWO[3], "federation.sites=[north,north]"], "federation.sites names north more than once"),
        ([*TWO, "privacy=dp", "privacy.epsilon=3", "privacy.ceiling=5"], "privacy.ceiling is for simulated clients"),
        ([*TWO, "privacy=dp", "privacy.epsilon=3", "privacy.ledgers=here"], "privacy.ledgers is for simulated clients"),
        ([*TWO, "strategy=fed_sb", "strategy.init=paper"], "starts from all clients' rows"),
    ],
)
def test_what_does_not_go_with_sites_is_found(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert [said in problem for problem in caught.value.problems] == [True], caught.value.problems


def test_an_empty_name_is_no_site() -> None:
    with pytest.raises(ConfigError, match=r"federation\.sites"):
        compose([*TWO[:2], "federation.sites=['',south]"])
