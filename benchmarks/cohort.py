"""A cohort of virtual clients in this process, asked as an engine asks them: what several benchmarks measure."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.workload import Workload
from benchmarks.simulation import overrides_of

ROUNDS = 1000
"""Rounds that are announced: more than anybody measures."""


@dataclass
class Counted:
    """A task's rows that count those of which batches were made; all else is the rows' own."""

    rows: Any
    records: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def batch(self, rows: Sequence[int]) -> Any:
        """As the rows' own."""
        self.records += len(rows)
        return self.rows.batch(rows)

    def compact(self, rows: Sequence[int]) -> Any:
        """As the rows' own."""
        self.records += len(rows)
        return self.rows.compact(rows)

    def dealt(self, parts: Sequence[Sequence[int]], *, level: bool = False) -> Any:
        """As the rows' own."""
        self.records += sum(map(len, parts))
        return self.rows.dealt(parts, level=level)


@dataclass
class Cohort:
    """Clients of one run with a worker of their own. contexts: what each client keeps; number: of the last round."""

    config: Any
    worker: Any
    strategy: Any
    contexts: list[Any] = field(default_factory=list)
    number: int = 0

    @classmethod
    def of(cls, workload: Workload, store: Path, overrides: Sequence[str] = ()) -> "Cohort":
        """The run as it would begin; the workload's model, data and tokens are loaded."""
        from fedlora.client.worker import Worker
        from fedlora.config.compose import compose
        from fedlora.config.strategy import make_strategy
        from fedlora.flower_internals import identify
        from fedlora.server.flower_strategy import FlowerStrategy
        from fedlora.simulations.ledgers import with_ledgers
        from fedlora.simulations.simulate import resolve
        from fedlora.training.heap import keep_memory

        keep_memory()  # as `fedlora simulate` does
        identify(1)
        settled = resolve(compose([*overrides_of(workload, ROUNDS, store), "engine=sequential", *overrides]))
        config = with_ledgers(settled, store)
        worker, method = Worker(config), make_strategy(config.strategy)
        state = method.start(worker.setup(method))
        worker.load_all()
        return cls(config, worker, FlowerStrategy(method, state, config, "benchmark"))

    def counted(self) -> Counted:
        """From now on, what is trained on is counted."""
        rows = Counted(self.worker.encoded("train"))
        self.worker._encoded["train"] = rows  # the product has no reason to offer this
        return rows

    def adapted(self) -> Any:
        """The model, holding the state of before round 1."""
        from fedlora.strategies.base import global_tensors

        adapted = self.worker.adapted(self.strategy.state.manifest)
        adapted.load(global_tensors(self.strategy.state))
        return adapted

    def step_of(self, clients: int) -> Callable[[], None]:
        """All local steps of `clients` clients at once, of a round without privacy: one alone, or a group."""
        from fedlora.strategies.base import global_tensors
        from fedlora.training.cohort.train import Member
        from fedlora.training.local import trained_names

        adapted, worker = self.adapted(), self.worker
        if clients == 1:
            return lambda: worker.train(adapted, 0, 1)
        tensors = global_tensors(self.strategy.state)
        start = {name: tensors[name] for name in trained_names(self.strategy.state.manifest)}
        members = [Member(client, worker.rows(client).train, start) for client in range(clients)]
        return lambda: worker.train_group(adapted, members, 1)

    def answer(self, clients: int) -> list[Any]:
        """A round of the first `clients` clients, asked together: the whole way from task to answer.

        Raises what kept them from training together, or the first client's own trouble.
        """
        from flwr.app import Context, RecordDict

        from fedlora.client.group import answer_group

        self.number += 1
        while len(self.contexts) < clients:
            self.contexts.append(Context(1, len(self.contexts) + 2, {}, RecordDict(), {}))
        asked = {client + 2: client for client in range(clients)}
        messages = self.strategy.messages(self.number, asked, self.strategy.state)
        answers = answer_group(messages, self.contexts[:clients], own_site(self.worker))
        for each in answers:
            if isinstance(each, Exception):
                raise each
        return list(answers)


def own_site(worker: Any) -> Any:
    """Where virtual clients are, with `worker` in the place of the process's one resident worker."""
    from fedlora.client.site import SimulatedSite

    class Here(SimulatedSite):
        def worker(self, work: Any) -> Any:
            del work
            return worker

        def fingerprint(self, work: Any) -> str:
            return f"benchmark {work.client}"

    return Here()


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that `work` takes: of the processor, by this process, and by the clock."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - clock
