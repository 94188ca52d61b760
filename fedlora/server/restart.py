"""Training again without a site that has left: a new run, from the last checkpoint that holds nothing of it."""

from collections.abc import Sequence
from dataclasses import replace

from fedlora.config.rules import contradictions
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError, RunError
from fedlora.server.checkpoint import Checkpoint, commit, load
from fedlora.server.queue import RunQueue
from fedlora.server.records import Outcome, RoundRecord, RunHistory, RunInfo, RunStatus


def restart_without(queue: RunQueue, run_id: str, without: Sequence[str]) -> RunInfo:
    """Queues a run of the other sites that goes on from the last global model in which no site of `without` is.

    Its rounds count from 0 anew; it has as many as the first run had left. Client numbers, and with them seeds, are
    those of the sites that remain. Under local DP it is a run of its own in every ledger: what was spent stays spent.

    Raises UnknownRunError; RunError if the run is under way; ConfigError for a name that is none of its sites, or if
    what remains does not fit together.
    """
    history = queue.store.history(queue.store.get(run_id))
    if history.run.status in (RunStatus.RUNNING, RunStatus.QUEUED):
        raise RunError(f"run {run_id} is {history.run.status}: stop it first (`fedlora run stop {run_id}`)")
    config = RunConfig.model_validate_json(history.run.config)
    start = last_before(history, config, without)
    fresh = _reduced(config, without, done=max(0, start))
    name = f"{history.run.name}-without-{'-'.join(without)}"
    run = queue.store.create(fresh, name=name, status=RunStatus.STOPPED)
    if start >= 0:
        _copy(queue, history, run, start)
    queue.store.reopen(run, status=RunStatus.QUEUED)
    queue.wake()
    return queue.store.get(run.id)


def last_before(history: RunHistory, config: RunConfig, without: Sequence[str]) -> int:
    """The last committed round before any of those sites reported; -1 if there is none.

    Raises ConfigError for a name that is none of the run's sites.
    """
    strange = [name for name in without if name not in config.federation.sites]
    if strange or not without:
        known = ", ".join(config.federation.sites) or "none: its clients are virtual"
        raise ConfigError([f"{', '.join(strange) or 'nobody'} is no site of run {history.run.id}; it has {known}"])
    numbers = {config.federation.sites.index(name) for name in without}
    clean = [record.round for record in history.rounds if not _holds(record, numbers)]
    first = next((record.round for record in history.rounds if _holds(record, numbers)), None)
    return max((number for number in clean if first is None or number < first), default=-1)


def _holds(record: RoundRecord, numbers: set[int]) -> bool:
    return any(row.client in numbers and row.outcome is Outcome.REPORTED for row in record.roster)


def _reduced(config: RunConfig, without: Sequence[str], *, done: int) -> RunConfig:
    sites = tuple(name for name in config.federation.sites if name not in without)
    rounds = config.federation.rounds - done
    if not sites or rounds < 1:
        raise ConfigError([f"nothing is left to train: {len(sites)} sites, {rounds} rounds"])
    federation = {
        "sites": sites,
        "clients": len(sites),
        "cohort": min(config.federation.cohort, len(sites)),
        "buffer": None if config.federation.buffer is None else min(config.federation.buffer, len(sites)),
        "rounds": rounds,
    }
    found = config.model_copy(
        update={"federation": config.federation.model_copy(update=federation), "output": None, "name": None}
    )
    problems = [each.text for each in contradictions(found)]
    if problems:
        raise ConfigError(problems)
    return found


def _copy(queue: RunQueue, history: RunHistory, run: RunInfo, start: int) -> None:
    """The checkpoint of round `start`, as the new run's round 0."""
    old = load(history.run.folder, start)
    record = replace(RoundRecord(0, {}, ()), metrics={n: v for n, v in old.record.metrics.items() if "validation" in n})
    with queue.store.lock(run):
        commit(queue.store, run, Checkpoint(0, old.state, record, {}, old.rng))
