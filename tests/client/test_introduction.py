"""What a client tells of itself: what its owner lets it, and of the policy no more than refusals tell."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedlora
from fedlora.client.deployed import DeployedSite
from fedlora.client.handler import SiteHandler
from fedlora.client.home import SiteHome
from fedlora.client.introduction import introduction
from fedlora.client.policy import Policy
from fedlora.client.policy_check import refusals
from fedlora.link import limits
from fedlora.link.v1.link_pb2 import Hello
from tests.client.policies import DIGEST, HIDDEN, asked, policy

DEVICE = "2 CPU cores, 24 GiB, no GPU"
NOON = datetime(2031, 5, 1, 12, 0)
ALL = ("data", "policy", "device")
FILE = """
models: {{tiny: {{source: local, path: /srv/models/tiny}}}}
data:
  ward-notes: {{source: local, path: /srv/patients.csv, columns: {{text: report, label: code}}, nominal_size: 1200}}
strategies: [fed_sb]
rounds_max: 17
tells: {tells}
"""


def told(**changes: Any) -> Any:
    return introduction(policy(**{"tells": ALL, **changes}), lambda: DEVICE)


def handler(home: SiteHome, tells: str) -> SiteHandler:
    home.policy.write_text(FILE.format(tells=tells))
    return SiteHandler(DeployedSite(home, "fl.example.org:8443"), "instance-1")


def test_all_that_can_be_told() -> None:
    found = told()
    assert found.shown() == {
        "version": fedlora.__version__,
        "data": ["notes (1200 rows)"],
        "policy": [
            "models: tiny",
            "tasks: text_classification, causal_lm",
            "strategies: fedavg, fed_sb",
            "least protection: local DP",
            "ε of one run: at most 3, at δ of at most 1e-05",
            "size of a run: at most 20 rounds, at most 10 steps a round, at most 32 records a step",
            "begins work: 20:00-06:00",
            "approval: each run waits once for the site's owner",
        ],
        "device": DEVICE,
    }


def test_a_policy_without_limits_says_so() -> None:
    free = Policy.model_validate(
        {"tells": ["policy"], "privacy": {"require": "none", "epsilon_run": None}, "approval": "automatic"}
    )
    assert introduction(free, lambda: DEVICE).policy == (
        "models: none",
        "tasks: any",
        "strategies: any",
        "least protection: none",
        "ε of one run: no ceiling in the policy, at δ of at most 1e-05",
        "size of a run: any",
        "begins work: at any time",
        "approval: none needed",
    )


def test_a_new_policy_tells_data_and_limits_and_no_device() -> None:
    assert Policy.model_validate({}).tells == ("data", "policy")


@pytest.mark.parametrize("tells", [(), ("data",), ("policy",), ("device",), ("data", "device"), ALL])
def test_each_part_only_if_the_owner_names_it(tells: tuple[str, ...]) -> None:
    found = told(tells=tells)
    named = {"data": bool(found.data), "policy": bool(found.policy), "device": bool(found.device)}
    assert {name for name, is_told in named.items() if is_told} == set(tells)


def test_the_device_is_not_even_looked_at_unless_it_is_told() -> None:
    def never() -> str:
        raise AssertionError("it was looked at")

    introduction(policy(tells=("data", "policy")), never)


def test_of_the_policy_nothing_is_told_that_one_refused_offer_does_not_tell() -> None:
    greedy = asked(
        model="m", data="d", task="t", strategy="s", privacy="none", rounds=99, steps=99, batch=99, unit="record"
    )
    spendthrift = asked(epsilon=9.0, delta=0.1)
    said = " ".join(found.text for ask in (greedy, spendthrift) for found in refusals(policy(), ask, NOON))
    values = ("tiny", "text_classification", "causal_lm", "fedavg", "fed_sb", "3", "1e-05", "20", "10", "32")
    lines = "\n".join(told().policy)
    for value in (*values, "20:00-06:00"):
        assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", lines), value
        assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", said), value
    assert set(re.findall(r"\d[\d.e:-]*\d|\d", lines)) <= set(re.findall(r"\d[\d.e:-]*\d|\d", said))
    for secret in (HIDDEN, "/srv", DIGEST[:12], "report", "code", "benign", "clinic", "patient", "fl.example.org"):
        assert secret not in lines


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=40))
def test_whatever_the_owners_names_are_it_is_a_few_printable_lines(names: list[str]) -> None:
    rule = {"source": "local", "path": "/m"}
    models = {name: rule for name in names if name.strip()}
    found = introduction(Policy.model_validate({"models": models, "tells": ALL}), lambda: "x\n\x1b[2J" * 999)
    assert len(found.policy) <= limits.POLICY_LINES
    for line in (*found.policy, found.device):
        assert line.isprintable()
        assert len(line) <= limits.POLICY_LINE
    assert len(found.device) == limits.DEVICE


# What is on the wire.


def test_the_hello_holds_what_the_owner_is_shown(home: SiteHome) -> None:
    client = handler(home, "[data, policy, device]")
    hello = Hello.FromString(client.hello().SerializeToString())
    assert [found.name for found in hello.data] == ["ward-notes"]
    assert hello.data[0].nominal_size == 1200
    assert "strategies: fed_sb" in hello.policy
    assert "CPU core" in hello.device
    assert client.told["policy"] == list(hello.policy)
    assert client.told["device"] == hello.device
    wire = hello.SerializeToString()
    for secret in (b"/srv", b"patients", b"report", b"code"):
        assert secret not in wire


def test_an_owner_who_says_no_has_nothing_told(home: SiteHome) -> None:
    hello = handler(home, "[]").hello()
    wire = hello.SerializeToString()
    for word in (b"ward-notes", b"tiny", b"fed_sb", b"17", b"CPU", b"GiB", b"GPU", b"approval", b"any"):
        assert word not in wire, word
    assert {field.name for field, _ in hello.ListFields()} == {
        "protocol",
        "version",
        "instance",
        "capabilities",
        "state",
    }


def test_a_changed_mind_counts_from_the_next_hello_and_the_log_has_it(
    home: SiteHome, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedlora.client.handler")
    client = handler(home, "[policy]")
    client.hello()
    client.hello()
    assert len(caplog.records) == 1
    assert "at most 17 rounds" in caplog.text
    home.policy.write_text(FILE.format(tells="[]"))
    assert not client.hello().policy
    assert client.told["policy"] == []
    assert len(caplog.records) == 2


def test_the_fingerprint_needs_this_sites_secret(home: SiteHome, tmp_path: Path) -> None:
    other = SiteHome.create(tmp_path / "other")
    one, two = (handler(each, "[data]").hello().data[0].fingerprint for each in (home, other))
    assert len(one) == len(two) == 32
    assert one != two
