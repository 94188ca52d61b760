"""Kills a client that spends privacy, again and again; run by test_ledger_kills.py in a process of its own.

`ledger_lives.py FOLDER SEED COUNT`: a server asks a client for rounds, one after another, until the client is killed by
SIGKILL: at a step drawn (before or after any of its syncs to the disk, in training, before and after it sends), or from
outside at a moment drawn. Each next life is asked for the round that did not arrive, sometimes for the next one, and
for the last one again. In the end every byte that was sent must be in the ledger, each round sent with one content, and
the ledger may count at most one round more a kill. A client that sends before it notes (the negative control) must be
caught by the same check.
"""

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedlora.privacy.accounting import Release
from fedlora.privacy.filter import divergence
from fedlora.privacy.ledger import Schedule, create_ledger, open_ledger
from fedlora.privacy.receipts import Receipt, ServerKey
from fedlora.privacy.spending import Spent, spend
from fedlora.server.durable import replace_synced

ROUND = Release(5.0, 0.01, 10)
ROUNDS = 5000  # more than fifty lives get through: a client that is done would end by itself
SCHEDULE = Schedule("run", "server", (ROUND,), ROUNDS)


def send(folder: Path, number: int, content: bytes) -> None:
    with (folder / "sent").open("ab") as file:
        file.write(f"{number} {hashlib.sha256(content).hexdigest()}\n".encode())


def sent(folder: Path) -> dict[int, set[str]]:
    """The digests of what arrived for each round."""
    found: dict[int, set[str]] = {}
    if (folder / "sent").exists():
        for line in (folder / "sent").read_text().splitlines():
            number, digest = line.split()
            found.setdefault(int(number), set()).add(digest)
    return found


def newest_receipt(folder: Path) -> Receipt | None:
    path = folder / "receipt"
    return Receipt.from_json(path.read_text()) if path.exists() else None


def honest(folder: Path, step: Callable[[], None], skip: bool) -> None:
    """One life. The server's last round is asked for again; then the one that did not arrive, or the next."""
    key = ServerKey.load_or_create(folder / "key.pem")
    arrived = sent(folder)
    last = max(arrived, default=0)

    def ask(number: int) -> Spent:
        spent = spend(
            folder / "ledger",
            SCHEDULE,
            number,
            fingerprint="f",
            receipt=newest_receipt(folder),
            still_open=lambda: (step(), True)[1],  # type: ignore[func-returns-value]
            make=lambda: (step(), os.urandom(16))[1],  # type: ignore[func-returns-value]
        )
        step()
        send(folder, number, spent.content)
        step()
        replace_synced(folder / "receipt", key.sign(spent.ledger, spent.head).to_json().encode())
        return spent

    if last:
        again = hashlib.sha256(ask(last).content).hexdigest()
        if arrived[last] != {again}:
            print(f"round {last} was sent again with other bytes", flush=True)
            os._exit(4)
    for number in range(last + 1 + skip, ROUNDS + 1):
        ask(number)


def careless(folder: Path, step: Callable[[], None], skip: bool) -> None:
    """Sends first and notes afterwards."""
    with open_ledger(folder / "ledger") as ledger:
        if "run" not in ledger.runs:
            ledger.reserve(SCHEDULE)
        for number in range(1, ROUNDS + 1):
            if number not in ledger.runs["run"].rounds:
                content = os.urandom(16)
                send(folder, number, content)
                step()
                ledger.begin("run", number)
                ledger.release("run", number, hashlib.sha256(content).hexdigest())


def step_at_syncs(step: Callable[[], None]) -> None:
    """From now on, in this process, each sync to the disk is a step before and a step after."""
    sync = os.fsync

    def stepped(descriptor: int) -> None:
        step()
        sync(descriptor)
        step()

    os.fsync = stepped  # type: ignore[assignment]


def live_and_die(client: Callable[[Path, Callable[[], None], bool], None], folder: Path, draw: random.Random) -> None:
    """One life in a fork, which ends by SIGKILL: at a step drawn, or from outside at a moment drawn."""
    at, moment = (draw.randrange(1, 80), None) if draw.random() < 0.6 else (None, draw.uniform(0.0, 0.2))
    skip = draw.random() < 0.3
    child = os.fork()
    if not child:
        taken = 0

        def step() -> None:
            nonlocal taken
            taken += 1
            if taken == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            step_at_syncs(step)
            client(folder, step, skip)
        except BaseException as error:
            print(repr(error), flush=True)
        finally:
            os._exit(3)
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the client ended by itself: {status}"


def check(folder: Path, kills: int) -> None:
    with open_ledger(folder / "ledger") as ledger:
        arrived = sent(folder)
        assert arrived, "no round was sent in any life"
        for number, digests in arrived.items():
            assert digests == {ledger.released("run", number)}, f"round {number} sent what is not noted"
        ledger.close("run")
        counted = round(ledger.runs["run"].counted() / divergence([ROUND], ledger.ceiling.order))
        assert len(arrived) <= counted <= len(arrived) + kills, (len(arrived), counted, kills)
        print(f"{kills} kills: {len(arrived)} rounds sent, {counted} counted")


def main() -> None:
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print("seed", seed, flush=True)
    draw = random.Random(seed)
    for client in (honest, careless):
        place = folder / client.__name__
        create_ledger(place / "ledger", "patients", 1000.0, 1e-5)
        caught = ""
        try:
            for _ in range(count):
                live_and_die(client, place, draw)
            check(place, count)
        except AssertionError as error:
            caught = str(error)
        print(client.__name__, caught or "held")
        if bool(caught) is (client is honest):
            sys.exit(1)


if __name__ == "__main__":
    main()
