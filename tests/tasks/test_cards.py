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

_BLOCKER = "import sys\nsys.modules['fedlora'] = None\n"


def _run(program: str, folder: Path, *arguments: Path) -> list[list[float]]:
    script = folder / "snippet.py"
    script.write_text(_BLOCKER + program, encoding="utf-8")
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[list[float]] = json.loads(done.stdout)
    return rows


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


@pytest.mark.parametrize("name", NAMES)
def test_the_snippets_give_the_tasks_logits(cases: dict[str, tuple[Any, Dataset]], tmp_path: Path, name: str) -> None:
    task, _ = cases[name]
    adapted = _adapted(task, name)
    expected = _expected(task, adapted, name)
    assert not torch.allclose(expected, _expected(task, task.load_base(), name), atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    task.save_processor(str(tmp_path / "adapter"))
    records = tmp_path / "records.json"
    records.write_text(json.dumps(RECORDS[name]), encoding="utf-8")
    card = task.card()
    got = _run(card["snippet"], tmp_path, task.loader.model.path, tmp_path / "adapter", records)
    torch.testing.assert_close(torch.tensor(got), expected, atol=1e-5, rtol=0)

    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    task.save_processor(str(tmp_path / "merged"))
    merged = _run(card["merged_snippet"], tmp_path, tmp_path / "merged", records)
    torch.testing.assert_close(torch.tensor(merged), expected, atol=1e-5, rtol=0)
    assert len(_run(card["merged_snippet"], tmp_path, tmp_path / "merged")) == card["merged_snippet"].count('{"')


@pytest.mark.parametrize("name", NAMES)
def test_a_card_names_base_and_labels(cases: dict[str, tuple[Any, Dataset]], name: str) -> None:
    task, _ = cases[name]
    card = task.card()
    assert card["base"] == task.loader.model.name
    assert card["labels"] == list(getattr(task, "labels", ()))
    assert "fedlora" not in card["snippet"] + card["merged_snippet"]
