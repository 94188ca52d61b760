"""Kills a client that spends privacy, again and again; run by test_ledger_kills.py in a process of its own.

`ledger_lives.py FOLDER SEED COUNT`: a client begins rounds, stores their bytes, notes and "sends" them, until it is
killed by SIGKILL at a random moment or step. Each next life goes on as a client would: bytes that were stored and noted
are sent again, what was begun is never noised anew. In the end every byte that was sent must be in the ledger, and the
ledger may count at most one round more a kill. A client that sends before it notes (the negative control) must be
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

ROUND = Release(5.0, 0.01, 10)
ROUNDS = 400


def send(folder: Path, number: int, content: bytes) -> None:
    with (folder / "sent").open("ab") as file:
        file.write(f"{number} {hashlib.sha256(content).hexdigest()}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def store(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def honest(folder: Path, step: Callable[[], None]) -> None:
    """One life: what died half-way is finished first, then new rounds."""
    with open_ledger(folder / "ledger") as ledger:
        step()
        if ledger.head.length == 1:
            ledger.reserve(Schedule("run", "server", ROUND, ROUNDS))
        begun = {int(entry["round"]) for entry in ledger._journal.entries if entry["kind"] == "begun"}
        for number in range(ROUNDS):
            path = folder / f"{number}.bytes"
            if number in begun:
                digest = ledger.released("run", number)
                if digest is not None:
                    send(folder, number, path.read_bytes())
                continue
            step()
            ledger.begin("run", number)
            step()
            content = os.urandom(16)  # the noised update
            store(path, content)
            step()
            ledger.release("run", number, hashlib.sha256(content).hexdigest())
            step()
            send(folder, number, content)
            step()


def careless(folder: Path, step: Callable[[], None]) -> None:
    """Sends first and notes afterwards."""
    with open_ledger(folder / "ledger") as ledger:
        if ledger.head.length == 1:
            ledger.reserve(Schedule("run", "server", ROUND, ROUNDS))
        begun = {int(entry["round"]) for entry in ledger._journal.entries if entry["kind"] == "begun"}
        for number in range(ROUNDS):
            if number not in begun:
                content = os.urandom(16)
                send(folder, number, content)
                step()
                ledger.begin("run", number)
                ledger.release("run", number, hashlib.sha256(content).hexdigest())


def live_and_die(client: Callable[[Path, Callable[[], None]], None], folder: Path, draw: random.Random) -> None:
    """One life in a fork, which ends by SIGKILL: at a step drawn, or from outside at a moment drawn."""
    at, moment = (draw.randrange(1, 25), None) if draw.random() < 0.5 else (None, draw.uniform(0.0, 0.03))
    child = os.fork()
    if not child:
        taken = 0

        def step() -> None:
            nonlocal taken
            taken += 1
            if taken == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            client(folder, step)
        finally:
            os._exit(3)
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the client ended by itself: {status}"


def check(folder: Path, kills: int) -> None:
    with open_ledger(folder / "ledger") as ledger:
        lines = (folder / "sent").read_text().split("\n")[:-1] if (folder / "sent").exists() else []
        sent: dict[int, set[str]] = {}
        for line in lines:
            number, digest = line.split()
            sent.setdefault(int(number), set()).add(digest)
        for round_number, digests in sent.items():
            assert digests == {ledger.released("run", round_number)}, f"round {round_number} sent what is not noted"
        if ledger.head.length > 1:
            ledger.close("run")
        counted = round(ledger._spent() / divergence([ROUND], ledger.ceiling.order))
        assert len(sent) <= counted <= len(sent) + kills, (len(sent), counted, kills)
        print(f"{kills} kills: {len(sent)} rounds sent, {counted} counted")


def main() -> None:
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print("seed", seed)
    draw = random.Random(seed)
    for client in (honest, careless):
        place = folder / client.__name__
        create_ledger(place / "ledger", "patients", 1000.0, 1e-5)
        for _ in range(count):
            live_and_die(client, place, draw)
        caught = ""
        try:
            check(place, count)
        except AssertionError as error:
            caught = str(error)
        print(client.__name__, caught or "held")
        if bool(caught) is (client is honest):
            sys.exit(1)


if __name__ == "__main__":
    main()
