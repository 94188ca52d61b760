"""The link's Grid: works keep their ids, and who stops waiting leaves nothing open."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedlora.link.grid import LinkGrid
from fedlora.link.host import LinkHost
from fedlora.link.inbox import Inbox
from fedlora.wire import to_record
from tests.link.world import message

TENSORS = {name: np.full(3, index, np.float32) for index, name in enumerate(("head", "a", "b"))}


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[LinkGrid]:
    with LinkHost() as host:
        yield LinkGrid(host, "run-1", ["site-0"], Inbox(tmp_path), 20.0)


def asking(order: list[str]) -> Message:
    task = message(0, 1)
    arrays = to_record({name: TENSORS[name] for name in order})
    return Message(RecordDict({"arrays": arrays, "task": task.content["task"]}), 2, "train", group_id="1")


def works(grid: LinkGrid) -> list[Any]:
    return list(grid.host.hub.works.values())


def test_a_work_is_the_same_in_whatever_order_a_checkpoint_gives_its_tensors_back(grid: LinkGrid) -> None:
    for order in (["head", "a", "b"], ["b", "head", "a"]):
        grid.push_messages([asking(order)])
    assert len(works(grid)) == 1
    TENSORS["a"][0] += 1
    grid.push_messages([asking(["head", "a", "b"])])
    assert len(works(grid)) == 2


def test_a_wait_that_is_interrupted_ends_as_an_interrupt_and_leaves_no_work_open(
    grid: LinkGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = grid.ask([asking(["head", "a", "b"])])
    (work,) = works(grid)

    real = threading.Condition.wait

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(threading.Condition, "wait", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Condition, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect()
    assert work.ended.done()
    assert not work.ended.cancelled()
    assert not works(grid)
