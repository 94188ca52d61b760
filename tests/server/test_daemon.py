"""What a server does when it starts where another one died."""

from types import ModuleType

from fedlora.link.inbox import Inbox
from fedlora.server.daemon import clear_leftovers
from fedlora.server.records import RunStatus
from fedlora.server.store import RunStore


def test_updates_that_a_server_left_when_its_run_had_just_ended_are_deleted(
    store: RunStore, samples: ModuleType
) -> None:
    left = {}
    for status in (RunStatus.FAILED, RunStatus.QUEUED, RunStatus.RUNNING):
        run = store.create(samples.config(), name=str(status), status=RunStatus.QUEUED)
        Inbox(run.folder)
        left[status] = run.folder / "incoming" / "update.answer"
        left[status].write_bytes(b"personal data")
        if status is RunStatus.FAILED:
            store.finish(run, status, reason="too few")
        elif status is RunStatus.RUNNING:
            store.mark_running(run)
    clear_leftovers(store)
    assert {status for status, path in left.items() if path.exists()} == {RunStatus.QUEUED, RunStatus.RUNNING}
