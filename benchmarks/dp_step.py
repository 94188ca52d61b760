"""What a private step costs beside an ordinary one, and beside Opacus: interleaved, in one process.

    python -m benchmarks.dp_step                      # MiniLM, rank 8, batches of 32 texts of 128 tokens
    python -m benchmarks.dp_step --pairs 40 --threads 2
    python -m benchmarks.dp_step --device cuda

Each round of the measurement takes one step of every variant, in an order that turns; a ratio is that of one round, so
that a slow moment of the machine is in both. Printed are the median ratio to the ordinary step with its 95 % interval
(bootstrap over rounds), and the memory that a step of each variant adds to a fresh process (on CUDA: to the device) at
its peak.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[], None]
ORDINARY = "ordinary"


@dataclass(frozen=True)
class Texts:
    """`rows` random texts of one length, as a task's encoded rows."""

    rows: int
    tokens: int

    def __len__(self) -> int:
        return self.rows

    def batch(self, rows: Sequence[int]) -> Mapping[str, Any]:
        """All rows are alike: what counts here is the size."""
        import torch

        draw = np.random.default_rng(0)
        ids = torch.from_numpy(draw.integers(1000, 20_000, (len(rows), self.tokens)))
        labels = torch.from_numpy(draw.integers(0, 6, len(rows)))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    compact = batch


def learner(records: int, tokens: int, device: str) -> Any:
    """MiniLM with the default adapter, all values random, and the texts."""
    from fedlora.client.worker import worker_for
    from fedlora.config.compose import compose
    from fedlora.config.strategy import make_strategy
    from fedlora.privacy.dp_sgd import Learner
    from fedlora.simulations.simulate import resolve
    from fedlora.strategies.base import global_tensors
    from fedlora.training.local import trained_names

    own = f"seed={time.time_ns() % 1000}"  # a model of its own
    config = resolve(compose([own, "engine=sequential", f"train.device={device}"]))
    worker, method = worker_for(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    adapted = worker.adapted(state.manifest)
    adapted.load(global_tensors(state))
    adapted.set_trained(trained_names(state.manifest))
    return Learner(adapted, worker.task, Texts(records, tokens), records)


def on_device(found: Any, records: int) -> Any:
    """All texts as one batch, where the model is."""
    from fedlora.tasks.base import move

    return move(found.encoded.batch(range(records)), found.adapted.device)


def parameters_of(found: Any) -> list[Any]:
    """The trained parameters."""
    from fedlora.training.local import trained_names

    parameters: list[Any] = found.adapted.parameters(trained_names(found.adapted.manifest))
    return parameters


def ordinary(found: Any, records: int) -> Step:
    """PEFT's layers, the mean loss, AdamW."""
    from torch.optim import AdamW

    from fedlora.training.optim import plain_step

    optimizer, step = AdamW(parameters_of(found), lr=1e-3, fused=True), plain_step(None)
    batch = on_device(found, records)

    def take() -> None:
        with found.adapted.training():
            step(found.adapted.model, found.task, batch, optimizer)

    return take


def private(found: Any, records: int) -> Step:
    """fedlora's private step: everybody is sampled, so that the batch is as large; noise from the system's entropy."""
    from torch.optim import AdamW

    from fedlora.privacy.dp_sgd import DpSgd, Units, private_steps
    from fedlora.privacy.randomness import system_source
    from fedlora.training.local import trained_names

    names = trained_names(found.adapted.manifest)
    optimizer = AdamW(parameters_of(found), lr=1e-3, fused=True)
    mechanism = DpSgd(noise_multiplier=1.0, bound=1.0, rate=1.0, expected=records, steps=1)
    units, source = Units.of_records(np.arange(records)), system_source()

    def take() -> None:
        with found.adapted.training():
            private_steps(found, names, units, mechanism, optimizer, source)

    return take


def as_peft_has_it(found: Any) -> None:
    """Opacus hooks into the layers inside PEFT's, which fedlora's own forward pass does not call."""
    from fedlora.adapters.low_rank import lengthen

    for layer in found.adapted.layers.values():
        lengthen(layer)


def opacus_hooks(found: Any, records: int) -> Step:
    """Opacus's default: hooks that keep activations."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from torch.optim import AdamW

    as_peft_has_it(found)
    wrapped = GradSampleModule(found.adapted.model, strict=False, loss_reduction="sum")
    settings: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": records}
    optimizer = DPOptimizer(AdamW(parameters_of(found), lr=1e-3, fused=True), **settings)
    batch = on_device(found, records)

    def take() -> None:
        optimizer.zero_grad()
        with found.adapted.training():
            wrapped.train()
            found.task.losses(found.adapted.model, batch).sum().backward()
            optimizer.step()

    return take


def opacus_ghost(found: Any, records: int) -> Step:
    """Opacus's ghost clipping: norms from Gram matrices, and a second backward pass."""
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from torch.optim import AdamW

    as_peft_has_it(found)
    wrapped = GradSampleModuleFastGradientClipping(found.adapted.model, strict=False, max_grad_norm=1.0)
    settings: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": records}
    optimizer = DPOptimizerFastGradientClipping(AdamW(parameters_of(found), lr=1e-3, fused=True), **settings)
    criterion = DPLossFastGradientClipping(wrapped, optimizer, torch.nn.CrossEntropyLoss())
    batch = on_device(found, records)

    def take() -> None:
        optimizer.zero_grad()
        with found.adapted.training():
            wrapped.train()
            criterion(found.task.logits(found.adapted.model, batch), batch["labels"]).backward()
            optimizer.step()

    return take


VARIANTS: Mapping[str, Callable[[Any, int], Step]] = {
    ORDINARY: ordinary,
    "private": private,
    "Opacus hooks": opacus_hooks,
    "Opacus ghost": opacus_ghost,
}


def make_step(variant: str, asked: argparse.Namespace) -> Step:
    """A variant's step, with a model of its own."""
    return VARIANTS[variant](learner(asked.batch, asked.tokens, asked.device), asked.batch)


def finish(asked: argparse.Namespace) -> None:
    """Waits for what the device still computes."""
    import torch

    if asked.device == "cuda":
        torch.cuda.synchronize()


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each variant in each round, and what is made of them."""
    import torch

    torch.set_num_threads(asked.threads)
    steps = {name: make_step(name, asked) for name in VARIANTS}
    for step in steps.values():
        step()
        step()
    finish(asked)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(asked.pairs):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            steps[name]()
            finish(asked)
            taken[name].append(time.perf_counter() - began)
    return {name: summary(seconds, taken[ORDINARY]) for name, seconds in taken.items()}


def summary(seconds: Sequence[float], ordinary_seconds: Sequence[float]) -> dict[str, float]:
    """Median seconds; median ratio to the ordinary step, with the bootstrap's 95 % interval."""
    ratios = np.array(seconds) / np.array(ordinary_seconds)
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"seconds": float(np.median(seconds)), "ratio": float(np.median(ratios)), "low": low, "high": high}


def peak(variant: str, asked: argparse.Namespace) -> float:
    """MB that two steps of one variant add at their peak to a process that has the model loaded."""
    command = [sys.executable, "-m", "benchmarks.dp_step", "--peak", variant, "--batch", str(asked.batch)]
    command += ["--tokens", str(asked.tokens), "--threads", str(asked.threads), "--device", asked.device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def print_peak(asked: argparse.Namespace) -> None:
    """Of this process: called in a fresh one for each variant."""
    import torch

    torch.set_num_threads(asked.threads)
    step = make_step(asked.peak, asked)
    peak_of = _cuda_peak if asked.device == "cuda" else _resident_peak
    print(peak_of(step))


def _resident_peak(step: Step) -> float:
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew, loading the model does not count
    before = _status("VmRSS")
    step()
    step()
    return (_status("VmHWM") - before) / 1024


def _cuda_peak(step: Step) -> float:
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _status(key: str) -> float:
    """A figure of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=30, help="rounds of the measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", choices=list(VARIANTS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        print_peak(asked)
        return
    found = {name: {**row, "peak_mb": peak(name, asked)} for name, row in measure(asked).items()}
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'step':14} {'seconds':>8} {'ratio':>7}  {'95 % interval':>15} {'peak MB':>8}")
    for name, row in found.items():
        interval = f"{row['low']:.3f} – {row['high']:.3f}"
        print(f"{name:14} {row['seconds']:8.3f} {row['ratio']:7.3f}  {interval:>15} {row['peak_mb']:8.0f}")


if __name__ == "__main__":
    main()
