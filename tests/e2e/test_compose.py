"""The very commands of docker-compose.yml, as processes: from nothing to a trained adapter."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.compose_processes import Composition

pytestmark = pytest.mark.slow


@pytest.fixture
def composition(tmp_path: Path) -> Iterator[Composition]:
    found = Composition(tmp_path)
    yield found
    found.stop()


def test_one_command_brings_up_a_federation_that_trains(composition: Composition, tmp_path: Path) -> None:
    composition.start()
    short = ["federation.rounds=1", "train.steps=1", "train.threads=1", "eval.test=false"]
    done = composition.fedlora("run", "start", "--home", str(composition.home), "--watch", *short)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "counted in clinic-a 1 of 1, clinic-b 1 of 1, clinic-c 1 of 1 rounds" in done.stdout
    assert list((composition.home / "runs").glob("*/adapter/adapter_model.safetensors"))

    # A second start finds everything in place: no certificate, token or home is made anew.
    before = (composition.home / "ca" / "ca.crt").read_bytes()
    composition.stop()
    composition.start()
    assert (composition.home / "ca" / "ca.crt").read_bytes() == before
    assert not list((tmp_path / "tokens").glob("*.new"))
