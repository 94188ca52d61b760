"""How near a training step is to its bound: the frozen base's matrix products alone, beside the whole step.

    python -m benchmarks bound                       # W; 1, 2, 4, 8 clients at once; matmul highest and medium
    python -m benchmarks bound --clients 4 --matmul medium --profile
    python -m benchmarks bound --clock wall --json   # on a quiet machine

Counted are the products that nobody can do without: of every frozen linear layer's weight with its input, and with the
gradient of its output where that is needed (below the first adapter it is not), as many as the task's forward pass has
of a padded batch for each client (with model.head=stock, the last layer has those of one token a text). Not counted:
attention's own products, the adapters', a trained head's. They run one behind the other with the model's own weights,
as many rows at once as the step has. The step is the product's local training (`Worker.train`, `Worker.train_group`),
all of it. Each pair runs both, in turn the one and the other first;
given are the median share with its 95 % interval (bootstrap over pairs). Each row is measured in one process of one
thread, and in two side by side, as `engine=processes` runs them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cohort import Cohort, spent
from benchmarks.dp_cohort import CLOCKS
from benchmarks.dp_step import summary
from benchmarks.peers.workload import Workload
from benchmarks.simulation import WORKLOADS, surroundings

WARM = 2
TARGET = 0.75


@dataclass(frozen=True)
class Product:
    """One frozen layer in a step of one client. weight [out, in]; rows: of its input; back: its gradient is needed.

    blocks: the weight and its transpose as the step has them laid out beforehand (`train.prepack`), if it has.
    """

    weight: Any
    rows: int
    back: bool
    blocks: Any = None

    def operations(self, clients: int) -> int:
        """Floating-point operations, forward and backward."""
        return 2 * clients * self.rows * int(self.weight.numel()) * (1 + self.back)


def products_of(cohort: Cohort) -> list[Product]:
    """As a step of one client's padded batch has them: found by one such forward pass."""
    from torch import nn

    from fedlora.adapters.prepacked import blocks_of
    from fedlora.tasks.base import move
    from fedlora.training.local import trained_names

    adapted, found = cohort.adapted(), list[Product]()
    names = trained_names(adapted.manifest)
    adapted.set_trained(names)

    def note(module: Any, inputs: Any, output: Any) -> None:
        del output
        rows = inputs[0].numel() // inputs[0].shape[-1]
        found.append(Product(module.weight.detach(), rows, inputs[0].requires_grad, blocks_of(module)))

    trained = {id(parameter) for parameter in adapted.parameters(names)}
    layers = [each for each in adapted.model.modules() if type(each) is nn.Linear and id(each.weight) not in trained]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    rows = cohort.worker.rows(0).train[: cohort.config.train.batch].tolist()
    with adapted.training():
        cohort.worker.task.losses(adapted.model, move(cohort.worker.encoded("train").batch(rows), adapted.device))
    for hook in hooks:
        hook.remove()
    return found


def products_alone(found: Sequence[Product], clients: int, steps: int) -> Callable[[], None]:
    """All of them, for `clients` clients at once, with weights laid out as in the step."""
    import torch
    from torch.nn.functional import linear

    from fedlora.adapters.prepacked import times

    sizes = {(each.rows * clients, width) for each in found for width in each.weight.shape}
    values = {size: torch.randn(*size) for size in sizes}
    forward = [(values[each.rows * clients, each.weight.shape[1]], each) for each in found]
    back = [(values[each.rows * clients, each.weight.shape[0]], each) for each in reversed(found) if each.back]

    def work() -> None:
        with torch.no_grad():
            for _ in range(steps):
                for x, each in forward:
                    times(x, each.blocks[0]) if each.blocks else linear(x, each.weight)
                for g, each in back:
                    times(g, each.blocks[1]) if each.blocks else g.mm(each.weight)

    return work


@dataclass(frozen=True)
class Case:
    """One measurement, of one process. pairs: how often."""

    clients: int
    matmul: str
    clock: str
    pairs: int


def measured(case: Case, workload: Workload, store: Path) -> dict[str, list[float]]:
    """Seconds of the products and of the whole, each for all local steps of the clients, pair by pair; and GFLOP."""
    import torch

    torch.set_num_threads(1)
    cohort = Cohort.of(workload, store, [f"train.matmul={case.matmul}", "train.threads=1"])
    found, steps = products_of(cohort), workload.shape.steps
    torch.set_float32_matmul_precision(case.matmul)
    both = {"products": products_alone(found, case.clients, steps), "step": cohort.step_of(case.clients)}
    taken: dict[str, list[float]] = {"products": [], "step": []}
    for number in range(-WARM, case.pairs):
        for name in sorted(both, reverse=number % 2 == 1):
            seconds = spent(both[name])[CLOCKS[case.clock]]
            if number >= 0:
                taken[name].append(seconds)
    return {**taken, "gflop": [steps * sum(each.operations(case.clients) for each in found) / 1e9]}


def side_by_side(case: Case, processes: int, workload: Workload, folder: Path) -> list[dict[str, list[float]]]:
    """The same in so many processes at once."""
    command = [sys.executable, "-m", "benchmarks.bound", "--one", json.dumps(asdict(case)), str(workload.folder)]
    running = [
        subprocess.Popen([*command, str(folder / f"store-{place}")], env=surroundings(), stdout=subprocess.PIPE)
        for place in range(processes)
    ]
    outputs = [process.communicate()[0].decode() for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process of the measurement failed: the lines above say why")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def row(case: Case, found: Sequence[dict[str, list[float]]], steps: int) -> dict[str, Any]:
    """What is printed of one case. found: of each process."""
    products = [seconds for each in found for seconds in each["products"]]
    whole = [seconds for each in found for seconds in each["step"]]
    share, gflop = summary(products, whole), found[0]["gflop"][0]
    step = summary(whole, whole)["seconds"]
    return {
        **asdict(case),
        "processes": len(found),
        "share": share["ratio"],
        "low": share["low"],
        "high": share["high"],
        "step_seconds": step / steps / case.clients,
        "clients_a_second": len(found) * case.clients / step,
        "bound_clients_a_second": len(found) * case.clients / share["seconds"],
        "gflops_products": gflop / share["seconds"],
        "gflops_step": gflop / step,
    }


def profile(case: Case, workload: Workload, store: Path) -> str:
    """Where the rest goes: torch's operations by their own time, of all local steps of the clients."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    torch.set_num_threads(1)
    cohort = Cohort.of(workload, store, [f"train.matmul={case.matmul}", "train.threads=1"])
    step = cohort.step_of(case.clients)
    step()
    with profiled(activities=[ProfilerActivity.CPU]) as kept:
        step()
    events = sorted(kept.key_averages(), key=lambda each: -each.self_cpu_time_total)
    whole = sum(each.self_cpu_time_total for each in events)
    lines = [
        f"| {each.key} | {100 * each.self_cpu_time_total / whole:.1f} | {each.count} |"
        for each in events[:15]
        if each.self_cpu_time_total
    ]
    title = f"| {case.clients} clients, {case.matmul}: operation (own time) | % | calls |"
    return "\n".join([title, "| --- | --- | --- |", *lines])


TITLE = (
    "| at once | matmul | processes | share of the bound | 95 % interval | clients/s | bound | GFLOP/s, products |"
    " GFLOP/s, step |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def told(found: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"| {found['clients']} | {found['matmul']} | {found['processes']} | {100 * found['share']:.1f} %"
        f" | {100 * found['low']:.1f} – {100 * found['high']:.1f} | {found['clients_a_second']:.2f}"
        f" | {found['bound_clients_a_second']:.2f} | {found['gflops_products']:.0f} | {found['gflops_step']:.0f} |"
    )


def parse() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(WORKLOADS), default="W")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8], help="trained at once")
    parser.add_argument("--matmul", nargs="+", choices=["highest", "high", "medium"], default=["highest", "medium"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="wall: on a quiet machine")
    parser.add_argument("--profile", action="store_true", help="where the rest of a step goes, instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """The command."""
    asked = parse()
    if asked.one:
        case, folder, store = Case(**json.loads(asked.one[0])), Path(asked.one[1]), Path(asked.one[2])
        print(json.dumps(measured(case, Workload.read(folder), store)))
        return
    cases = [Case(clients, matmul, asked.clock, asked.pairs) for matmul in asked.matmul for clients in asked.clients]
    print(f"load average {os.getloadavg()}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="fedlora-bound-") as name:
        folder = Path(name)
        workload = Workload.build(folder / "workload", WORKLOADS[asked.workload])
        if asked.profile:
            print("\n\n".join(profile(case, workload, folder / "store") for case in cases))
            return
        rows = []
        for case in cases:
            for processes in asked.processes:
                rows.append(row(case, side_by_side(case, processes, workload, folder), workload.shape.steps))
                print(told(rows[-1]), file=sys.stderr, flush=True)
        print(json.dumps(rows, indent=2) if asked.json else "\n".join([TITLE, *map(told, rows)]))


if __name__ == "__main__":
    main()
