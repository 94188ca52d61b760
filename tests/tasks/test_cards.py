"""The snippets of model cards, run as their readers run them: in a process without fedlora."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

RECORDS: dict[str, list[dict[str, Any]]] = {
    "mean": [{"text": "animal1 baba"}, {"text": "tool2 " * 20}, {"text": "unheard of"}],
    "stock": [{"text": "animal1 baba", "text_pair": "food1"}, {"text": "tool2", "text_pair": "baba bade bafi"}],
    "causal_lm": [
        {"prompt": "what colour has the baba ?", "answer": "red"},
        {"prompt": "what " * 20, "answer": "blue green"},
        {"prompt": "what", "answer": "red " * 20},
    ],
    "image": [{"image": [[row * 14 + column for column in range(14)] for row in range(14)]}, {"image": [[0, 255]]}],
}
TARGETS = {"mean": ["query"], "stock": ["query"], "causal_lm": ["q_proj"], "image": ["q_proj"]}
EXTRA = {"mean": {"label": 0}, "stock": {"label": 0}, "causal_lm": {}, "image": {"label": 0}}
NAMES = list(RECORDS)

# Runs many programs in one process, since importing torch takes longest. Argument: a JSON file of (program, arguments).
DRIVER = """
import contextlib, io, json, sys
sys.modules["fedlora"] = None  # an import of it fails
printed = []
for program, arguments in json.load(open(sys.argv[1])):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "snippet", "exec"), {"__name__": "__main__"})
    printed.append(json.loads(out.getvalue()))
print(json.dumps(printed))
"""


def _run(programs: list[tuple[str, list[str]]], folder: Path) -> list[list[list[float]]]:
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    (folder / "programs.json").write_text(json.dumps(programs), encoding="utf-8")
    command = [sys.executable, folder / "driver.py", folder / "programs.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    printed: list[list[list[float]]] = json.loads(done.stdout)
    return printed


def _expected(task: Any, model: Any, name: str) -> torch.Tensor:
    batch = task.encode(Dataset.from_list([record | EXTRA[name] for record in RECORDS[name]])).batch(
        range(len(RECORDS[name]))
    )
    with torch.no_grad():
        logits: torch.Tensor = task.logits(model, batch)
    return logits


def _adapted(task: Any, name: str) -> Any:
    heads = sorted({parameter.split(".")[0] for parameter in task.head_parameters(task.load_skeleton())})
    config = LoraConfig(task_type=task.peft_task_type, r=2, target_modules=TARGETS[name], modules_to_save=heads or None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(task.load_base(), config).eval()
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def _export(task: Any, name: str, folder: Path) -> tuple[torch.Tensor, list[tuple[str, list[str]]]]:
    """Writes an adapter, a merged model and records; gives the logits to expect and the programs to run."""
    adapted = _adapted(task, name)
    expected = _expected(task, adapted, name)
    assert not torch.allclose(expected, _expected(task, task.load_base(), name), atol=1e-3)
    adapter, merged, records = (str(folder / name / part) for part in ("adapter", "merged", "records.json"))
    adapted.save_pretrained(adapter)
    adapted.merge_and_unload().save_pretrained(merged)
    for saved in (adapter, merged):
        task.save_processor(saved)
    Path(records).write_text(json.dumps(RECORDS[name]), encoding="utf-8")
    base, card = str(task.loader.model.path), task.card()
    return expected, [
        (card["snippet"], [base, adapter, records]),
        (card["merged_snippet"], [merged, records]),
        (card["snippet"], [base, adapter]),
        (card["merged_snippet"], [merged]),
    ]


def test_the_snippets_give_the_tasks_logits(cases: dict[str, tuple[Any, Dataset]], tmp_path: Path) -> None:
    exports = {name: _export(task, name, tmp_path) for name, (task, _) in cases.items()}
    printed = iter(_run([program for _, programs in exports.values() for program in programs], tmp_path))
    for expected, _ in exports.values():
        for got in (next(printed), next(printed)):
            torch.testing.assert_close(torch.tensor(got), expected, atol=1e-5, rtol=0)
        example, same = torch.tensor(next(printed)), torch.tensor(next(printed))
        assert example.shape[1:] == expected.shape[1:]
        torch.testing.assert_close(example, same, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_names_base_and_labels(cases: dict[str, tuple[Any, Dataset]], name: str) -> None:
    task, _ = cases[name]
    card = task.card()
    assert card["base"] == task.loader.model.name
    assert card["labels"] == list(getattr(task, "labels", ()))
    assert "fedlora" not in card["snippet"] + card["merged_snippet"]
