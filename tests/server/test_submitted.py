"""What a server makes of a submitted experiment."""

import pytest

from fedlora.config.compose import compose
from fedlora.errors import ConfigError
from fedlora.server.submitted import for_sites


def test_all_known_clients_take_part_in_the_order_of_their_names() -> None:
    found = for_sites(compose([]), ["ward-b", "ward-a", "ward-c"]).federation
    assert found.sites == ("ward-a", "ward-b", "ward-c")
    assert (found.clients, found.cohort) == (3, 3)


def test_named_sites_keep_their_order_and_the_cohort_its_size() -> None:
    said = ["federation.sites=[e,d,c,b,a]", "federation.clients=5", "federation.cohort=3"]
    found = for_sites(compose(said), ["a", "b", "c", "d", "e", "f"]).federation
    assert found.sites == ("e", "d", "c", "b", "a")
    assert found.cohort == 3


def test_unknown_sites_are_named_all_at_once() -> None:
    said = compose(["federation.sites=[a,x,y]", "federation.clients=3", "federation.cohort=3"])
    with pytest.raises(ConfigError) as caught:
        for_sites(said, ["a"])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="no client has joined"):
        for_sites(compose([]), [])


def test_two_sites_without_dp_would_see_each_others_update() -> None:
    with pytest.raises(ConfigError, match=r"federation\.release_few=true"):
        for_sites(compose([]), ["a", "b"])
    assert for_sites(compose(["federation.release_few=true"]), ["a", "b"]).federation.cohort == 2
    assert for_sites(compose(["privacy=dp", "privacy.epsilon=3"]), ["a", "b"]).federation.cohort == 2


def test_where_figures_go_is_for_the_server_to_say() -> None:
    with pytest.raises(ConfigError, match=r"track: .*server\.yaml"):
        for_sites(compose(["track.to=[tensorboard]", "federation.release_few=true"]), ["a", "b"])
