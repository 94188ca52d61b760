"""What a server forgets by itself once the retention times of its settings are over."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from fedlora.errors import StoreError
from fedlora.identity.clock import Clock, utc_now
from fedlora.server import scrub_files
from fedlora.server.dashboard.audit import AuditLog
from fedlora.server.erase import expire
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.scrub import erasures, exclusive
from fedlora.server.settings import ServerSettings
from fedlora.server.store import RunStore

log = logging.getLogger(__name__)

_OVER = (RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED)
_DAY = 24 * 3600.0
_AGAIN = 3600.0  # seconds until the next try where something could not be deleted
_PATIENCE = 5.0  # seconds for which the end waits; a crash at any instant does no harm, and neither does that


def forget(store: RunStore, settings: ServerSettings, *, now: Clock = utc_now) -> Sequence[str]:
    """Deletes what the settings say, old entries of the audit log too; returns the ids of runs whose rosters went.

    It may be repeated. Raises StoreError if something could not be deleted; the rest is.
    """
    gone: Sequence[str] = ()
    try:
        if settings.keep_rosters_days is not None:
            gone = expire(store, days=settings.keep_rosters_days, now=now)
    finally:
        if settings.keep_events_days is not None:
            expire_events(store, days=settings.keep_events_days, now=now)
        if settings.keep_audit_days is not None:
            AuditLog(store.database, now).expire(settings.keep_audit_days)
    return gone


def expire_events(store: RunStore, *, days: int, now: Clock = utc_now) -> None:
    """Takes what tells of single clients out of the event logs of runs that ended more than `days` ago.

    Their rosters stay, in the database and in the checkpoints. Raises StoreError if one could not be written; the
    others are.
    """
    failures: list[str] = []
    for run in store.list():
        if _ended_before(run, now, days):
            try:
                _scrub_events(run)
            except StoreError as error:
                failures.append(f"run {run.id}: {error}")
    if failures:
        raise StoreError(f"not all events could be deleted: {'; '.join(failures)}")


@contextmanager
def forgetting(store: RunStore, settings: ServerSettings) -> Iterator[None]:
    """Does `forget` in a thread for the block: at once, then every day. Without retention times it does nothing."""
    if settings.keep_rosters_days is settings.keep_events_days is settings.keep_audit_days is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_go_on, args=(store, settings, ended), name="retention", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_PATIENCE)


def _go_on(store: RunStore, settings: ServerSettings, ended: threading.Event) -> None:
    wait = 0.0
    while not ended.wait(wait):
        wait = _DAY
        try:
            gone = forget(store, settings)
        except StoreError as error:
            log.warning("what should be forgotten by now is not, trying again in an hour: %s", error)
            wait = _AGAIN
            continue
        if gone:
            log.info("the rosters of these runs were deleted, their retention time is over: %s", ", ".join(gone))


def _ended_before(run: RunInfo, now: Clock, days: int) -> bool:
    return run.status in _OVER and run.finished_at is not None and run.finished_at < now() - timedelta(days=days)


def _scrub_events(run: RunInfo) -> None:
    with exclusive(run.folder):
        erased = erasures(run.folder)
        everyone = erased.with_everyone(max(erased.everyone, scrub_files.last_trace(run.folder)))
        scrub_files.scrub_events(run.folder, everyone)
