"""Three honest sites and one that lies, as processes with real certificates: the honest three's model comes out."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults_harm import VARIABLE, Harm
from tests.e2e.federation import PATIENCE, Federation
from tests.e2e.malicious import ESCAPES, LIES, NUMBER

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = len(LIES)
REJECTED = {
    1: "the manifest says",
    2: "values that are NaN or infinite",
    3: "claims 1000000000000 training rows",
    4: "the answer is for round 3, but round 4 was asked",
    5: "is there twice",
    6: "no content of fedlora.v1",
    7: "is missing (1 in all)",
}
"""Why the gate takes the fourth's answer for none, by round."""


@pytest.fixture
def federation(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Iterator[Federation]:
    overrides = (f"federation.rounds={ROUNDS}", "federation.absence=2")
    found = Federation(tmp_path, tiny_bert, tiny_text_csv, sites=4, overrides=overrides)
    found.prepare()
    yield found
    found.stop()


def lying(federation: Federation) -> "subprocess.Popen[bytes]":
    """The fourth site, which has joined, driven by a program of its own; it ends with the federation."""
    command = [sys.executable, "-m", "tests.e2e.malicious", str(federation.site(NUMBER)), str(federation.link_port)]
    environment = federation.environment(PYTHONPATH=str(ROOT))
    liar = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=federation.folder
    )
    federation.processes["liar"] = liar
    return liar


def heard(liar: "subprocess.Popen[bytes]") -> dict[int, str]:
    """What the server said to the fourth, by round, when that has done its worst."""
    said, errors = liar.communicate(timeout=PATIENCE)
    assert liar.returncode == 0, errors
    return {int(line["round"]): str(line["said"]) for line in map(json.loads, said.splitlines())}


def of_the_honest(federation: Federation) -> bytes:
    """What comes of the experiment on virtual clients where the fourth's answers are taken away."""
    store = federation.folder / "simulated"
    lost = Harm(lost=tuple((number, NUMBER) for number in LIES)).to_json()
    more = ("engine=sequential", f"store={store}", "output=null")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults_harm", "simulate", "-q", *federation.experiment(*more)],
        capture_output=True,
        text=True,
        check=False,
        env=federation.environment(**{VARIABLE: lost, "PYTHONPATH": str(ROOT)}),
        cwd=federation.folder,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (adapter,) = store.glob("*/adapter/adapter_model.safetensors")
    return adapter.read_bytes()


def test_a_site_that_lies_costs_itself_its_rounds_and_nobody_else_anything(federation: Federation) -> None:
    federation.start(clients=range(NUMBER))
    server = federation.processes["server"]
    federation.join(NUMBER)
    liar = lying(federation)
    federation.until_connected(NUMBER + 1)
    run = federation.submit()
    shown = federation.wait(run)
    said = heard(liar)
    assert shown["rounds_done"] == ROUNDS
    assert federation.processes["server"] is server
    assert server.poll() is None  # it has never died
    rosters = {
        found["round"]: {row["client"]: row for row in found["roster"]}
        for found in shown["rounds_list"]
        if found["round"] in LIES
    }
    assert list(rosters) == list(LIES)
    for roster in rosters.values():
        assert [roster[client]["outcome"] for client in range(NUMBER)] == ["reported"] * NUMBER
    check_the_fourth({number: roster[NUMBER] for number, roster in rosters.items()}, said)
    assert federation.adapter(run) == of_the_honest(federation)
    assert not list((federation.home / "runs" / run / "incoming").iterdir())


def check_the_fourth(rows: dict[int, dict[str, Any]], said: dict[int, str]) -> None:
    """Each round's roster says what became of it and why; and its lies were sent, not only thought of."""
    for number, reason in REJECTED.items():
        assert (rows[number]["outcome"], reason in rows[number]["reason"]) == ("rejected", True), rows[number]
    assert rows[8]["outcome"] == "declined"
    assert "not today" in rows[8]["reason"]
    assert rows[8]["reason"].isprintable()
    assert len(rows[8]["reason"]) <= 1000 < len(ESCAPES * 100)
    assert rows[9]["outcome"] == "lost"
    assert "not been connected" in rows[9]["reason"]
    assert list(said) == list(LIES)
    assert said[4] == "taken; taken"  # the old one was, in its round
    assert said[5] == "taken; taken; taken"
    assert "cannot be read" in said[6] or "protocol error" in said[6]
    assert "an answer of 1000000000000 bytes was announced" in said[9]
