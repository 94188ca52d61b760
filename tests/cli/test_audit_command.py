"""`fedlora audit`, as a user and as a script would call it."""

import json
from pathlib import Path

import pytest
from torch import Tensor

from fedlora.cli.__main__ import run
from fedlora.privacy.dp_sgd import DpSgd
from fedlora.privacy.randomness import RandomSource

ASKED = ["audit", "privacy=dp", "privacy.noise_multiplier=1.5", "train.steps=2", "federation.rounds=5"]


def test_the_table_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASKED, "--canaries", "50000"]) == 0
    text = capsys.readouterr().out
    for said in ("noise multiplier 1.5", "10 steps", "one step", "50,000", "no contradiction found", "cannot show"):
        assert said in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASKED, "privacy.participations=3", "--canaries", "2000", "--confidence", "0.99", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mechanism"]["noise_multiplier"] == 1.5
    assert told["mechanism"]["steps"] == 6
    assert told["confidence"] == 0.99
    assert told["contradicted"] is False
    assert [bound["name"] for bound in told["bounds"]] == ["one step", "whole run, rates", "whole run, guesses"]
    assert all(bound["lower"] <= bound["claimed"] for bound in told["bounds"])


def test_the_noise_is_made_to_fit(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["audit", "privacy=dp", "privacy.epsilon=2", "privacy.accountant=rdp", "--canaries", "2000", "--json"]
    assert run(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bounds"][1]["claimed"] == pytest.approx(2.0, rel=0.01)


def test_a_step_before_the_first_round_is_audited_too(capsys: pytest.CaptureFixture[str]) -> None:
    from fedlora.config.compose import compose
    from fedlora.config.strategy import make_strategy

    asked = [*ASKED[1:], "strategy=fed_sb"]
    assert run(["audit", *asked, "--canaries", "1000", "--json"]) == 0
    sketches = int(make_strategy(compose(asked).strategy).private_start)
    assert json.loads(capsys.readouterr().out)["mechanism"]["steps"] == 10 + sketches


def test_missing_noise_ends_with_40(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    honest = DpSgd.noised_mean

    def noised_mean(self: DpSgd, total: Tensor, source: RandomSource) -> Tensor:
        weaker = DpSgd(self.noise_multiplier / 2, self.bound, self.rate, self.expected, self.steps)
        return honest(weaker, total, source)

    monkeypatch.setattr(DpSgd, "noised_mean", noised_mean)
    assert run([*ASKED, "--canaries", "50000"]) == 40
    assert "CONTRADICTED: the mechanism leaks more than it claims" in capsys.readouterr().out
    assert run([*ASKED, "--canaries", "50000", "--json"]) == 40
    assert json.loads(capsys.readouterr().out)["contradicted"] is True


@pytest.mark.parametrize("privacy", ["none", "central"])
def test_without_dp_sgd_there_is_nothing_to_audit(privacy: str, capsys: pytest.CaptureFixture[str]) -> None:
    noise = [] if privacy == "none" else ["privacy.noise_multiplier=1"]
    assert run(["audit", f"privacy={privacy}", *noise]) == 2
    said = capsys.readouterr().err
    assert f"privacy.name = {privacy}" in said
    assert "set 'privacy=dp'" in said


def test_too_few_canaries(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASKED, "--canaries", "10"]) == 14
    assert "canaries = 10" in capsys.readouterr().err


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("privacy: {name: dp, noise_multiplier: 3, delta: 1.0e-4}\n", encoding="utf-8")
    assert run(["audit", "--config", str(file), "--canaries", "1000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["mechanism"]["noise_multiplier"], told["delta"]) == (3.0, 1e-4)
