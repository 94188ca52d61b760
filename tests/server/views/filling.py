"""Large stores, filled by direct inserts: what the views must be fast on."""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore, tables
from tests.server.samples import config

START = datetime(2026, 1, 1, tzinfo=UTC)
OUTCOMES = ("reported",) * 17 + ("declined", "lost", "rejected")


def fill(
    store: RunStore, clients: int, rounds: int, name: str = "large", status: RunStatus = RunStatus.FINISHED
) -> RunInfo:
    """A run of sites with `rounds` committed rounds, each of which asked all `clients`."""
    sites = [f"site-{number:03d}" for number in range(clients)]
    federation = {"clients": clients, "cohort": clients, "rounds": rounds, "sites": sites}
    run = store.create(config(federation=federation), name=name)
    draw = random.Random(clients * rounds)  # noqa: S311 - sample data
    with store.database.writes() as connection:
        for number in range(rounds + 1):
            connection.execute(sa.insert(tables.rounds), [_round(run.id, number, draw)])
            if number:
                connection.execute(sa.insert(tables.roster), [_row(run.id, number, c, draw) for c in range(clients)])
        connection.execute(sa.update(tables.runs).filter_by(id=run.id).values(rounds_done=rounds))
    return store.finish(run, status, {"test_accuracy": 0.9}) if status is not RunStatus.RUNNING else store.get(run.id)


def _round(run: str, number: int, draw: random.Random) -> dict[str, Any]:
    return {
        "run": run,
        "round": number,
        "metrics": {
            "validation_accuracy": draw.random(),
            "validation_loss": draw.random(),
            "train_loss": draw.random(),
        },
        "bytes_up": 1000,
        "bytes_down": 2000,
        "bytes_once": 0,
        "bytes_up_head": 0,
        "bytes_down_head": 0,
        "seconds": 2.0,
        "committed_at": START + timedelta(seconds=2 * number),
    }


def _row(run: str, number: int, client: int, draw: random.Random) -> dict[str, Any]:
    outcome = draw.choice(OUTCOMES)
    return {
        "run": run,
        "round": number,
        "client": client,
        "outcome": outcome,
        "reason": "" if outcome == "reported" else f"reason {draw.randrange(9)}",
        "samples": 20,
        "bytes_up": 5,
        "bytes_down": 10,
        "seconds": 1.0,
        "metrics": {"loss": draw.random(), "holdout_accuracy": draw.random()},
    }


def timed(what: str, call: Callable[[], object], repeat: int = 3) -> None:
    """Prints how long the first call took, and the fastest of the next."""
    seconds = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    print(f"{what:<28} first {seconds[0] * 1000:8.1f} ms   then {min(seconds[1:]) * 1000:8.1f} ms")  # noqa: T201


def main() -> None:
    """Fills a store and prints what each view takes."""
    from fedlora.server.views import Views

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=100)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RunStore.open(Path(folder)) as store:
        run = fill(store, chosen.clients, chosen.rounds)
        for number in range(chosen.runs - 1):
            fill(store, 3, 20, f"small-{number}")
        from fedlora.identity.registry import Registry

        registry = Registry(store.database)
        for site in range(chosen.clients):
            registry.invite(f"site-{site:03d}")
        views = Views(store, registry, work=None)
        timed(f"runs(), {chosen.runs} runs", views.runs)
        timed("series()", lambda: views.series(run.id))
        timed("matrix()", lambda: Views(store).matrix(run.id))
        timed("matrix(), kept", lambda: views.matrix(run.id))
        timed("spread()", lambda: views.spread(run.id, "loss"))
        timed("roster_metrics()", lambda: views.roster_metrics(run.id))
        timed("roster()", lambda: views.roster(run.id, chosen.rounds // 2))
        timed("clients()", views.clients)
        timed("run_row()", lambda: views.run_row(run.id))
        timed("mine()", lambda: views.mine(run.id, "site-003"))


if __name__ == "__main__":
    main()
