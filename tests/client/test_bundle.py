"""What an owner hands to a helper holds nothing of what must not leave."""

import json
import logging
import stat
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedlora.client.bundle import LEFT_OUT, bundle, redact
from fedlora.client.controls import Status, pause, write_status
from fedlora.client.home import SiteHome, note_joined
from fedlora.client.policy import LogRule
from fedlora.client.site_log import open_log
from fedlora.errors import StoreError
from fedlora.privacy.ledger import create_ledger
from tests.client.policies import ALLOWS

KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"


@pytest.fixture
def used(home: SiteHome) -> SiteHome:
    """A home in which everything that must not leave says so."""
    home.policy.write_text(yaml.safe_dump(ALLOWS) + "# comment of SECRET person\n")
    home.client_key.write_text(KEY.replace("MIGH", "SECRET"))
    home.client_certificate.write_text("SECRET")
    note_joined(home, "fl.example.org:8443")
    create_ledger(home.ledger("clinic"), "SECRET patients", 10.0, 1e-5)
    for place in (home.state / "SECRET.bin", home.results / "SECRET.jsonl", home.sent):
        place.write_text("SECRET")
    write_status(home, Status(1, "then", "fl.example.org:8443", True, "work", "row SECRET is odd", "now"))
    pause(home, "SECRET reason")
    handler = open_log(home, LogRule.model_validate({"megabytes": 0.001}))
    logger = logging.Logger("fedlora.client.loop")
    logger.addHandler(handler)
    for number in range(20):
        try:
            raise ValueError("row 17 says SECRET")
        except ValueError:
            logger.exception("text %r in /srv/SECRET/x.csv is odd", "SECRET", extra={"run": "run-1", "round": number})
    handler.close()
    with (home.log / "client.jsonl.1").open("a") as file:
        file.write("half a line SECRET")
    return home


def contents(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_nothing_of_data_keys_ledgers_paths_or_comments(used: SiteHome, tmp_path: Path) -> None:
    out = tmp_path / "bundle.zip"
    names = bundle(used, out)
    found = contents(out)
    assert list(found) == names
    assert {"versions.json", "status.json", "policy.yaml", "log/client.jsonl", "log/client.jsonl.1"} <= set(found)
    everything = "\n".join(found.values())
    for word in ("SECRET", "/srv", "PRIVATE", str(used.folder), used.fingerprint_key.read_bytes().hex()):
        assert word not in everything
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_it_still_helps(used: SiteHome, tmp_path: Path) -> None:
    bundle(used, tmp_path / "bundle.zip")
    found = contents(tmp_path / "bundle.zip")
    last = json.loads(found["log/client.jsonl"].splitlines()[-1])
    assert last["template"] == "text %r in (path) is odd"
    assert (last["run"], last["round"], last["level"]) == ("run-1", 19, "error")
    assert last["error"]["type"] == "ValueError"
    assert set(last["error"]) == {"type", "frames"}
    assert json.loads(found["log/client.jsonl.1"].splitlines()[-1]) == {"template": LEFT_OUT}
    status = json.loads(found["status.json"])
    assert (status["running"], status["paused"], status["status"]["last_error"]) == (False, True, LEFT_OUT)
    policy = yaml.safe_load(found["policy.yaml"])
    assert policy["data"]["notes"]["path"] == policy["models"]["tiny"]["path"] == LEFT_OUT
    assert policy["privacy"]["epsilon_run"] == 3.0
    assert json.loads(found["versions.json"])["packages"]["torch"]


def test_a_new_home_and_a_broken_one(home: SiteHome, tmp_path: Path) -> None:
    bundle(home, tmp_path / "new.zip")
    assert json.loads(contents(tmp_path / "new.zip")["status.json"])["status"] == {}
    home.policy.write_text("privcy: /srv/SECRET\nhours: 3\n")
    home.status.write_text("{")
    bundle(home, tmp_path / "broken.zip")
    found = contents(tmp_path / "broken.zip")
    assert found["policy.yaml"] == f"# the policy has 2 mistakes: {LEFT_OUT}\n"
    assert "no JSON" in found["status.json"]
    assert str(home.folder) not in "\n".join(found.values())


def test_a_file_is_never_written_over(home: SiteHome, tmp_path: Path) -> None:
    out = tmp_path / "thesis.txt"
    out.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        bundle(home, out)
    assert out.read_text() == "mine"
    with pytest.raises(StoreError, match="cannot write the bundle"):
        bundle(home, tmp_path / "nowhere" / "x.zip")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("see /srv/anna/policy.yaml, then", "see (path), then"),
        ("cannot read '/srv/of anna/x.csv': no", "cannot read (path): no"),
        ("in ~/site and ./site/policy.yaml", "in (path) and (path)"),
        (r"in C:\Users\anna\x", "in (path)"),
        ("https://anna:word@host/x", "https://(login)@host/x"),
        ("ask anna.b@example.org now", "ask (mail address) now"),
        (f"token {'aB3_' * 8} was", "token (digest or token) was"),
        (f"before\n{KEY}after", "before\n(key)\nafter"),
        (KEY[:40] + " cut off", "(key)"),
    ],
)
def test_what_is_taken_out_of_a_text(text: str, left: str) -> None:
    assert redact(text) == left


@pytest.mark.parametrize(
    "text", ["run 20310501-120000-fedavg-1a2b, round 3/12", "fedlora.client.loop:12 answer", "and/or, 1.5e-3 %"]
)
def test_what_helps_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=200))
def test_twice_is_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)
