"""The clients of a server over all runs."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fedlora.identity.records import ClientStatus
from fedlora.identity.registry import Registry
from fedlora.server.dashboard.people import Role
from fedlora.server.records import Outcome
from fedlora.server.store import RunStore
from fedlora.server.views import Link
from tests.postgres import BOTH
from tests.server.views.making import START, Clock, committed, configured, promised, quiet_views, row
from tests.server.views.test_health import there

pytestmark = BOTH


@pytest.fixture
def registry(store: RunStore) -> Registry:
    found = Registry(store.database, lambda: START)
    for name in ("north", "south", "stranger"):
        found.invite(name, hours=72)
    return found


def test_what_they_did_in_all_runs(store: RunStore, registry: Registry) -> None:
    one = store.create(configured(), name="one")
    committed(store, one, [[row(0), row(1, Outcome.DECLINED, "not today")], [row(0), row(1, Outcome.LOST, "away")]])
    two = store.create(configured(("south", "north")), name="two")
    rosters = [[row(0, Outcome.REJECTED, f"norm {number}"), row(1, Outcome.LATE, "slow")] for number in range(1, 4)]
    committed(store, two, rosters)
    north, south, stranger = quiet_views(store, registry=registry).clients()
    assert (north.name, north.asked, north.reported, north.late, north.lost) == ("north", 5, 2, 3, 0)
    assert (south.asked, south.declined, south.rejected, south.lost, south.failed) == (5, 1, 3, 1, 0)
    assert (north.bytes_up, north.bytes_down) == (50, 100)
    assert [(said.run_name, said.round, said.outcome, said.reason) for said in south.last_reasons] == [
        ("two", 3, "rejected", "norm 3"),
        ("two", 2, "rejected", "norm 2"),
        ("two", 1, "rejected", "norm 1"),
    ]
    assert (stranger.asked, stranger.last_reasons, stranger.privacy) == (0, (), ())


def test_counts_grow_with_rounds(store: RunStore, registry: Registry) -> None:
    run = store.create(configured(), name="n")
    views = quiet_views(store, registry=registry)
    committed(store, run, [[row(0)]])
    assert views.clients()[0].asked == 1
    from fedlora.server.records import RoundRecord

    store.commit_round(run, RoundRecord(2, {}, [row(0, Outcome.FAILED, "it broke")]))
    found = views.clients()[0]
    assert (found.asked, found.reported, found.failed, found.last_reasons[0].reason) == (2, 1, 1, "it broke")


def test_privacy_of_each_run(store: RunStore, registry: Registry) -> None:
    local, central = (store.create(configured(privacy=name), name=name) for name in ("dp", "central"))
    committed(store, local, [[row(0), row(1, Outcome.DECLINED, "no")], [row(0)]])
    committed(store, central, [[row(0)]])
    promised(local, 3.0, 2)
    promised(central, 8.0, 5)
    north, south, _ = quiet_views(store, registry=registry).clients()
    told = {found.run_name: (found.rounds, found.epsilon, found.promised, found.central) for found in north.privacy}
    assert told == {"dp": (2, 3.0, 3.0, False), "central": (1, None, 8.0, True)}
    assert [(found.rounds, found.epsilon, found.promised) for found in south.privacy] == [(0, 0.0, 3.0)]


def test_presence(store: RunStore, registry: Registry) -> None:
    clock = Clock()
    presences = {"north": there(seconds=60, work="a"), "south": there(connected=False, seconds=30)}
    views = quiet_views(store, clock, registry=registry, link=Link(lambda: presences))
    north, south, stranger = views.clients()
    assert (north.connected, north.away_since, north.work, north.paused) == (True, None, "a", None)
    assert (south.connected, south.away_since) == (False, START - timedelta(seconds=30))
    assert south.last_seen == south.away_since
    assert (stranger.connected, stranger.away_since, stranger.last_seen) == (False, None, None)
    assert (north.status, north.invitation_expires) == (ClientStatus.INVITED, START + timedelta(hours=72))
    clock.after(5)
    assert views.clients()[1].away_since == south.away_since  # the same moment, whenever it is asked
    presences["north"] = there(paused=True)
    assert views.clients()[0].paused == "paused"


def test_what_a_client_tells_of_its_device_and_policy_while_it_is_there(store: RunStore, registry: Registry) -> None:
    presences = {
        "north": replace(there(), data=["notes"], device="2 CPU cores, 24 GiB, no GPU", policy=["tasks: any"]),
        "south": there(),
        "stranger": replace(there(connected=False), device="gone", policy=["gone"]),
    }
    views = quiet_views(store, registry=registry, link=Link(lambda: presences))
    north, south, stranger = views.clients()
    assert (north.data, north.device, north.policy) == (("notes",), "2 CPU cores, 24 GiB, no GPU", ("tasks: any",))
    assert (south.data, south.device, south.policy) == ((), None, ())
    assert (stranger.data, stranger.device, stranger.policy) == ((), None, ())


def test_without_a_registry_there_are_none(store: RunStore) -> None:
    assert quiet_views(store).clients() == ()


def test_a_viewer_learns_nothing_of_who_takes_part_under_central_privacy(store: RunStore, registry: Registry) -> None:
    """Before the first commit of such a run, too: then only what a client is at work on would tell."""
    told = replace(there(work="hidden, round 1"), data=["notes"], device="2 CPU cores", policy=["tasks: any"])
    views = quiet_views(store, registry=registry, link=Link(lambda: {"north": told}))
    committed(store, store.create(configured(), name="open"), [[row(0)]])
    assert views.clients(Role.VIEWER)[0].work == "hidden, round 1"
    hidden = store.create(configured(privacy="central"), name="hidden")
    early = views.clients(Role.VIEWER)[0]
    committed(store, hidden, [[row(0)], [row(0)]])
    promised(hidden, 8.0, 5)
    late = views.clients(Role.VIEWER)[0]
    for north in (early, late):
        assert (north.connected, north.data, north.device) == (True, ("notes",), "2 CPU cores")
        assert (north.work, north.asked, north.bytes_up, north.privacy) == (None, 1, 10, [])
    assert views.clients()[0].work == "hidden, round 1"
    assert (views.clients()[0].asked, len(views.clients()[0].privacy)) == (3, 1)
