"""`fedlora export` and `fedlora merge` on a run in a real store."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import typer
from peft import PeftModel
from typer.testing import CliRunner, Result

from fedlora.adapters.peft_format import read_adapter
from fedlora.cli import export
from fedlora.client.worker import worker_for
from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import ModelError, StoreError, UnknownRunError
from fedlora.server.checkpoint import Checkpoint, commit
from fedlora.server.records import RoundRecord, RunInfo
from fedlora.server.store import RunStore
from fedlora.strategies.base import State
from tests.tiny import LABELS, tiny_config


@pytest.fixture
def run(tmp_path: Path, tiny_bert: Path, tiny_text_csv: Path) -> RunInfo:
    """A run with rounds 0 to 2, whose adapters differ."""
    config = tiny_config(tiny_bert, tiny_text_csv, store=tmp_path / "runs", strategy={"name": "fed_sb"})
    worker, method = worker_for(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    with RunStore.open(config.store) as store:
        info = store.create(config, name="tiny")
        for number in range(3):
            commit(store, info, Checkpoint(number, moved(state, number), RoundRecord(number, {"loss": number / 4}, ())))
        return info


def moved(state: State, number: int) -> State:
    draw = np.random.default_rng(number)
    shared = {n: (v + 0.3 * number * draw.standard_normal(v.shape)).astype(v.dtype) for n, v in state.shared.items()}
    return replace(state, shared=shared)


def ask(run: RunInfo, *arguments: str) -> Result:
    app = typer.Typer()
    export.register(app)
    return CliRunner().invoke(app, [*arguments, "--store", str(run.folder.parent)])


def folder_of(result: Result) -> Path:
    assert result.exit_code == 0, result.exception
    return Path(json.loads(result.stdout)["folder"])


def logits(folder: Path, base: Path | None = None) -> torch.Tensor:
    auto = transformers.AutoModelForTokenClassification
    options = {} if base is None else {"num_labels": len(LABELS), "ignore_mismatched_sizes": True}
    model = auto.from_pretrained(base or folder, **options)
    model = model if base is None else PeftModel.from_pretrained(model, str(folder))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(4, 20).reshape(2, 8)).logits
    return found


def test_a_run_its_export_and_both_merges_give_the_same_logits(run: RunInfo, tiny_bert: Path) -> None:
    exported = folder_of(ask(run, "export", run.id, "--json"))
    assert exported == run.folder / "adapter"
    merged = folder_of(ask(run, "merge", run.id, "--json"))
    assert merged == run.folder / "merged"
    beside = folder_of(ask(run, "merge", str(exported), "--json"))
    assert beside == run.folder / "adapter-merged"
    expected = logits(exported, tiny_bert)
    assert (logits(merged) - expected).abs().max() < 1e-5
    assert (logits(beside) - expected).abs().max() < 1e-5


def test_a_chosen_round_is_exported_where_asked(run: RunInfo, tmp_path: Path) -> None:
    first = ask(run, "export", "tiny", "--round", "1", "--output", str(tmp_path / "one"), "--json")
    assert json.loads(first.stdout) == {"folder": str(tmp_path / "one"), "run": run.id, "round": 1}
    second = folder_of(ask(run, "export", "tiny", "--round", "2", "--json"))
    assert second == run.folder / "adapter-round-2"
    one, two = read_adapter(tmp_path / "one"), read_adapter(second)
    module = next(iter(one.factors))
    assert not np.array_equal(one.factors[module][1], two.factors[module][1])
    assert "| loss | 0.25 |" in (tmp_path / "one" / "README.md").read_text()


def test_people_get_a_sentence(run: RunInfo) -> None:
    assert ask(run, "export", "latest").stdout == f"Wrote the adapter to {run.folder / 'adapter'}\n"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("export", "tiny", "--round", "9"), StoreError, r"no round 9 to export: rounds 0 to 2 are committed"),
        (("export", "tiny", "--round", "-1"), StoreError, r"no round -1 to export"),
        (("export", "ghost"), UnknownRunError, "ghost"),
    ],
)
def test_mistakes_are_named(run: RunInfo, arguments: tuple[str, ...], kind: type[Exception], message: str) -> None:
    error = ask(run, *arguments).exception
    with pytest.raises(kind, match=message):
        raise error or AssertionError


def test_an_adapter_that_fedlora_did_not_make_is_refused(run: RunInfo, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "adapter_config.json").write_text("{}")
    error = ask(run, "merge", str(tmp_path / "foreign")).exception
    assert isinstance(error, ModelError)
    assert "does not say how it was made" in str(error)


def test_a_second_run_in_the_same_process_starts_from_the_same_model(run: RunInfo) -> None:
    """What an earlier run trained, the head above all, must not be where the next one starts."""
    config = RunConfig.model_validate_json(run.config)
    worker, method = worker_for(config), make_strategy(config.strategy)
    first = method.start(worker.setup(method))
    adapted = worker.adapted(first.manifest)
    adapted.load({name: value + 1 for name, value in first.shared.items()})
    second = method.start(worker.setup(method))
    assert first.shared.keys() == second.shared.keys()
    assert all(np.array_equal(first.shared[name], second.shared[name]) for name in first.shared)
