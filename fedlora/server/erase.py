"""What a server deletes of a site that asks for it, and of all sites when its retention time is over.

Gone is all that tells of the site's single updates and of what it measured: in the database, in the run's folder
(events, checkpoints, report, incoming answers, receipts), and in what a run that is under way is about to write of the
rounds that it had begun. Of a client that leaves, too, the links that show its part to collaborators, and its name in
the audit log. What stays:

- the global models and adapters. An update that was aggregated cannot be taken out of them; the reply says in which
  rounds it is, and from which checkpoint a run without it could begin;
- that the client took part: its name among the sites of its runs and, revoked, among the server's clients; its number,
  and the outcome of each round. Under local DP privacy.json and the adapter's copy of it count those rounds; they
  count nothing else of a site;
- figures of whole rounds and runs (`train_loss`, `clients_…`, bytes, seconds): sums and means over sites. Who knows
  the other sites' figures can still work out this one's from a mean. Where it alone reported, they go, too;
- reports that were written to other places, logs of the server's process, copies and backups.

No server keeps tensors of a site's own (`Delivery.LOCAL`), so checkpoints of runs with sites have none.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

from fedlora.errors import ConfigError, StoreError
from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.registry import Registry
from fedlora.link.v1.link_pb2 import ErasedRun, EraseReply
from fedlora.server import scrub_files
from fedlora.server.checkpoint import saved_rounds
from fedlora.server.dashboard.audit import AuditLog, Note
from fedlora.server.dashboard.forgetting import GONE
from fedlora.server.dashboard.links import Links
from fedlora.server.records import Outcome, RunHistory, RunInfo, RunStatus
from fedlora.server.scrub import Erasures, erasures, exclusive, note
from fedlora.server.store import RunStore

WorksOf = Callable[[RunInfo, str], Iterable[str]]
"""Takes a run and a site's name; gives the ids of the works whose answers it may have sent for that run."""

LEFT = "left"
"""The reason of the revocation of a client that left."""

_OVER = (RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED)
_BEGUN = {RunStatus.RUNNING: 2, RunStatus.FAILED: 1}
"""Rounds after the last committed one that a run may have begun: it measures one while it trains the next."""

_PATIENCE, _POLL = 60.0, 0.1  # seconds to wait for a run that has just ended, and between two looks at it
_MOST_DAYS = 36_500


def no_works(run: RunInfo, name: str = "") -> Iterable[str]:
    """Knows of no work."""
    del run, name
    return ()


def erase_client(
    store: RunStore, registry: Registry, name: str, *, leave: bool, works_of: WorksOf = no_works
) -> EraseReply:
    """Deletes what the store has of the client `name`; with `leave` its certificates, too, once all is deleted.

    works_of: of which works the client may have answers in `incoming`; those of runs that are over go in any case.

    It may be repeated, also where it was cut off in the middle, and while runs are under way: they go on. Of a client
    that stays nothing is kept of the rounds that they had begun; of one that leaves, of no round.

    Raises StoreError if something could not be deleted (the rest is, and the client may still connect), IdentityError
    if it is to leave and there is no such client.
    """
    failures: list[str] = []
    found: list[tuple[RunInfo, int]] = []
    asked: list[tuple[RunInfo, Erasures]] = []
    for run in store.list():
        with _collected(run, failures):
            if (client := _place(run, name)) is not None:
                found.append((run, client))
                asked.append((run, _noted(store, run, partial(_with_client, client, leave))))
    _scrub(store, asked, failures, lambda run: works_of(run, name))
    if failures:
        raise StoreError(f"not everything of client {name!r} could be erased: {'; '.join(failures)}; repeat it")
    if leave:
        forget_name(store, name)
        AuditLog(store.database).write(Note("erase client", "", object=f"client {GONE}", reason="at its own request"))
        registry.revoke(name, LEFT)
    return EraseReply(runs=[_told(store.history(run), client) for run, client in found])


def forget_name(store: RunStore, name: str) -> None:
    """Ends the links that show the client `name` its part, and takes its name out of the audit log. Raises StoreError.

    Nothing of it is left in SQLite's files then; whether a crash has left some before, nobody knows.
    """
    Links(store.database).remove_of(name)
    AuditLog(store.database).forget(name)
    store.database.purge()


def _with_client(client: int, leave: bool, before: Erasures, last: int) -> Erasures:
    return before.with_client(client, None if leave else last)


def expire(store: RunStore, *, days: int, now: Clock = utc_now) -> Sequence[str]:
    """Deletes the same of every client in the runs that ended more than `days` (0 to 36,500) ago.

    Receipts stay. Returns the ids of the runs in which there was something to do. It may be repeated: what is deleted
    already costs little. Raises ConfigError for another number of days, StoreError as `erase_client` does.
    """
    if not 0 <= days <= _MOST_DAYS:
        raise ConfigError([f"a retention time of {days} days cannot be: give 0 to {_MOST_DAYS} days"])
    limit = now() - timedelta(days=days)
    failures: list[str] = []
    due: list[tuple[RunInfo, Erasures]] = []
    for run in store.list():
        if run.status in _OVER and run.finished_at is not None and run.finished_at < limit:
            with _collected(run, failures):
                erased = _noted(store, run, lambda before, last: before.with_everyone(last))
                due += [] if erased.complete else [(run, erased)]
    _scrub(store, due, failures)
    if failures:
        raise StoreError(f"not everything could be deleted: {'; '.join(failures)}")
    return [run.id for run, _ in due]


def finish_erasures(store: RunStore) -> None:
    """Ends what `erase_client` and `expire` could not: a crash cut them off, or the run was still under way.

    For a server's start, and for when a run has ended. Raises StoreError as they do.
    """
    failures: list[str] = []
    begun: list[tuple[RunInfo, Erasures]] = []
    for run in store.list():
        with _collected(run, failures):
            begun += [] if (erased := erasures(run.folder)).complete else [(run, erased)]
    _scrub(store, begun, failures)
    if failures:
        raise StoreError(f"not everything that sites asked to erase could be: {'; '.join(failures)}")


def _place(run: RunInfo, name: str) -> int | None:
    """The client number of the site `name`; None if it has no part in the run."""
    sites = sites_of(run)
    return sites.index(name) if name in sites else None


def sites_of(run: RunInfo) -> Sequence[str]:
    """The names of the run's sites by client number; none of simulated ones. Raises StoreError."""
    try:
        return tuple(json.loads(run.config)["federation"].get("sites") or ())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"the configuration of run {run.id} in the store cannot be read, so nobody knows its sites: {error}"
        ) from error


def _noted(store: RunStore, run: RunInfo, more: Callable[[Erasures, int], Erasures]) -> Erasures:
    """What is erased of the run with what `more` adds, given what there was and the last round that may be known of.

    From here on, whoever writes to the run leaves it out.
    """
    with exclusive(run.folder):
        committed = store.last_round(run)
        begun = (-1 if committed is None else committed) + _BEGUN.get(store.get(run.id).status, 0)
        before = erasures(run.folder)
        erased = more(before, max(begun, scrub_files.last_trace(run.folder)))
        if erased != before and run.folder.is_dir():
            note(run.folder, erased)
    return erased


def _scrub(
    store: RunStore,
    asked: Sequence[tuple[RunInfo, Erasures]],
    failures: list[str],
    works_of: Callable[[RunInfo], Iterable[str]] = no_works,
) -> None:
    """Deletes what was noted. A run that fails is added to `failures`, and the others have their turn."""
    if not asked:
        return
    store.blank_roster({run.id: erased for run, erased in asked})
    for run, erased in asked:
        with _collected(run, failures):
            _scrub_folder(store, run, erased, works_of)


def _scrub_folder(
    store: RunStore, run: RunInfo, erased: Erasures, works_of: Callable[[RunInfo], Iterable[str]]
) -> None:
    now = _at_rest(store, run)
    over = now.status in _OVER
    with exclusive(run.folder):
        scrub_files.scrub_events(run.folder, erased)
        scrub_files.scrub_checkpoints(run.folder, erased)
    scrub_files.scrub_incoming(run.folder, () if over else works_of(now), over=over)
    scrub_files.scrub_report(store.history(run), over=over)
    if not over:
        return
    scrub_files.scrub_receipts(run.folder, erased)
    with exclusive(run.folder):
        if run.folder.is_dir() and erasures(run.folder) == erased:
            note(run.folder, replace(erased, complete=True))


def _at_rest(store: RunStore, run: RunInfo) -> RunInfo:
    """The run as it stands; one that has just ended, once its process has written its results."""
    deadline = time.monotonic() + _PATIENCE
    while (now := store.get(run.id)).status in _OVER and (holder := store.holder(now)) is not None:
        if time.monotonic() > deadline:
            raise StoreError(f"it has {now.status}, and {holder} still writes to it: end that process")
        time.sleep(_POLL)
    return now


@contextmanager
def _collected(run: RunInfo, failures: list[str]) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        failures.append(f"run {run.id}: {error}")


def _told(history: RunHistory, client: int) -> ErasedRun:
    """The rounds whose global model contains an update of `client`, and the last checkpoint without one; -1: none."""
    rounds = [
        record.round
        for record in history.rounds
        if any(row.client == client and row.outcome is Outcome.REPORTED for row in record.roster)
    ]
    first = min(rounds, default=math.inf)
    saved = set(saved_rounds(history.run.folder))
    before = [record.round for record in history.rounds if record.round < first and record.round in saved]
    return ErasedRun(run=history.run.id, rounds=rounds, restart_after=max(before, default=-1))
