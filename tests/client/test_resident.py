"""Which configurations share a process's resident worker."""

from pathlib import Path

import pytest

from fedlora.client import worker as worker_module
from fedlora.client.worker import worker_for
from fedlora.config.schema import EngineConfig
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def nobody_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_resident", {})


def test_where_clients_run_and_who_is_told_of_figures_change_no_worker(tmp_path: Path) -> None:
    """Tasks carry no trackers, and a run settles its engine late: neither is a reason to load everything again."""
    config = tiny_config(tmp_path / "bert", tmp_path / "texts.csv")
    one = worker_for(config)
    for other in (
        config.model_copy(update={"engine": EngineConfig(name="processes", workers=2, group=3)}),
        config.model_copy(update={"track": config.track.model_copy(update={"to": ("tensorboard",)})}),
        config.model_copy(update={"store": tmp_path / "other", "name": "another"}),
    ):
        assert worker_for(other) is one


def test_what_changes_a_result_has_a_worker_of_its_own(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "bert", tmp_path / "texts.csv")
    one = worker_for(config)
    for update in ({"seed": 1}, {"train": config.train.model_copy(update={"precision": "bfloat16"})}):
        assert worker_for(config.model_copy(update=update)) is not one
