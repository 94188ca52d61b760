"""A round below its quorum fails, or is tried again; what comes of it then has the bits of an unbroken run."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedlora.client.app import app
from fedlora.config.schema import RunConfig
from fedlora.errors import QuorumError
from fedlora.server.events import Event, RoundRetried
from fedlora.server.records import RunStatus
from fedlora.simulations.simulate import Watch, run
from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid
from tests.simulations.test_simulate import adapter_of
from tests.tiny import tiny_config


class Moody(VirtualGrid):
    """Gives no reply at all the first `silences` times it is asked."""

    def __init__(self, clients: int, silences: int) -> None:
        super().__init__(InProcess(Clients(app)), clients)
        self.silences = silences

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        if self.silences:
            self.silences -= 1
            return []
        return super().send_and_receive(messages, timeout=timeout)


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def config(store: str, **federation: Any) -> RunConfig:
        return tiny_config(tiny_bert, tiny_text_csv, store=tmp_path / store, federation=federation)

    return config


def test_a_round_is_tried_again_until_enough_report(make: Callable[..., RunConfig]) -> None:
    events: list[Event] = []
    config = make("moody", below_quorum="retry", retry_wait=0.0)
    history = run(config, Watch((events.append,)), grid=Moody(4, silences=2))
    assert history.run.status is RunStatus.FINISHED
    retried = [event for event in events if isinstance(event, RoundRetried)]
    assert [(event.round, event.attempt) for event in retried] == [(1, 1), (1, 2)]
    assert "0 of 2 updates were admitted" in retried[0].reason
    assert adapter_of(history) == adapter_of(run(make("calm"), Watch(), grid=Moody(4, silences=0)))


def test_retries_end_and_name_who_did_not_report(make: Callable[..., RunConfig]) -> None:
    config = make("given-up", below_quorum="retry", retries=2, retry_wait=0.0)
    with pytest.raises(QuorumError, match=r"client [0-3]: no answer"):
        run(config, Watch(), grid=Moody(4, silences=3))


def test_by_default_the_first_failure_ends_the_run(make: Callable[..., RunConfig]) -> None:
    with pytest.raises(QuorumError):
        run(make("strict"), Watch(), grid=Moody(4, silences=1))


def test_more_are_asked_than_are_needed(make: Callable[..., RunConfig]) -> None:
    history = run(make("over", cohort=2, over_selection=1.5), Watch(), grid=Moody(4, silences=0))
    assert [len(record.roster) for record in history.rounds] == [0, 3, 3]
