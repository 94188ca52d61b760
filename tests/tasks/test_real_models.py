"""The packaged models really load, answer and learn. Needs the assets (a download, if they are not in the cache)."""

import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from fedlora.tasks.registry import make_task
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

QUESTIONS = {
    "text": ["Who wrote Hamlet ?", "Where is Lima ?", "Who was the first man on the moon ?", "Where is the Nile ?"],
    "label": [0, 1, 0, 1],
}
ANSWERS = {"prompt": ["What is the capital of France?", "What is 2 + 2?"], "answer": ["Paris.", "The answer is 4."]}


def test_minilm_loads_and_fits_four_questions(capsys: pytest.CaptureFixture[str]) -> None:
    model = {"source": "asset", "name": "minilm", "path": None}
    start = time.perf_counter()
    task = make_task(tiny_config(Path("minilm"), Path("texts.csv"), model=model), ("person", "place"))
    base = task.load_base()
    with capsys.disabled():
        print(f"\nminilm: {time.perf_counter() - start:.1f} s to load")  # noqa: T201
    assert sum(parameter.numel() for parameter in base.parameters()) > 22e6
    assert task.head_parameters(base) == ["classifier.weight", "classifier.bias"]
    batch = task.encode(Dataset.from_dict(QUESTIONS)).batch(range(4))
    head = [parameter for name, parameter in base.named_parameters() if name.startswith("classifier")]
    optimizer = torch.optim.AdamW(head, lr=3e-2)
    for _ in range(30):
        optimizer.zero_grad()
        task.losses(base, batch).mean().backward()
        optimizer.step()
    assert task.evaluate(base, batch)["accuracy"].mean() == 1


def test_smollm2_loads_from_its_gguf_and_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"source": "asset", "name": "smollm2", "path": None}
    start = time.perf_counter()
    config = tiny_config(Path("smollm2"), Path("qa.jsonl"), model=model, task={"max_length": 64})
    task = make_task(config, None)
    tokenizer_and_config = time.perf_counter() - start
    skeleton = {name: parameter.shape for name, parameter in task.load_skeleton().named_parameters()}
    base = task.load_base()
    with capsys.disabled():
        whole = time.perf_counter() - start
        print(f"\nsmollm2: {tokenizer_and_config:.1f} s for tokenizer and config, {whole:.1f} s in all")  # noqa: T201
    assert {name: parameter.shape for name, parameter in base.named_parameters()} == skeleton
    encoded = task.encode(Dataset.from_dict(ANSWERS))
    batch = encoded.batch([0, 1])
    with torch.no_grad():
        assert torch.isfinite(task.evaluate(base, batch)["loss"]).all()
        assert task.logits(base, batch).shape == (2, base.config.vocab_size)
        prompt = batch["input_ids"][:1, : int((batch["labels"][0] >= 0).nonzero()[0])]
        said = base.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False)
    assert "Paris" in task.tokenizer.decode(said[0, prompt.shape[1] :])
    task.save_processor(str(tmp_path))
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(ANSWERS["prompt"])["input_ids"] == task.tokenizer(ANSWERS["prompt"])["input_ids"]
    assert again.chat_template == task.tokenizer.chat_template
