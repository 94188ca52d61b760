"""Causal LM: which tokens have a loss, cutting, metrics by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import log_softmax

from fedlora.errors import DataError, ModelError
from fedlora.tasks.causal_lm import NO_LOSS
from fedlora.tasks.registry import make_task
from tests.tiny import tiny_config

Cases = dict[str, tuple[Any, Dataset]]


def _rows(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"prompt": [p for p, _ in pairs], "answer": [a for _, a in pairs]})


def _words(task: Any, batch: dict[str, torch.Tensor], row: int = 0) -> tuple[list[str], list[str]]:
    """All tokens of a row, and those with a loss."""
    every = batch["input_ids"][row][batch["attention_mask"][row] == 1]
    labels = batch["labels"][row]
    convert = task.tokenizer.convert_ids_to_tokens
    return convert(every.tolist()), convert(labels[labels != NO_LOSS].tolist())


def _plain(tiny_llama: Path, max_length: int = 16) -> Any:
    task = make_task(tiny_config(tiny_llama, Path("qa.jsonl"), task={"max_length": max_length}), None)
    task.tokenizer.chat_template = None
    return task


def test_the_chat_template_frames_the_turns_and_only_the_answer_has_a_loss(cases: Cases) -> None:
    task, _ = cases["causal_lm"]
    every, answer = _words(task, task.encode(_rows(("what is red", "blue green"))).batch([0]))
    assert every == ["<s>", "user", "what", "is", "red", "</s>", "<s>", "assistant", "blue", "green", "</s>"]
    assert answer == ["blue", "green", "</s>"]


def test_without_a_template_the_answer_follows_on_a_new_line(tiny_llama: Path) -> None:
    task = _plain(tiny_llama)
    every, answer = _words(task, task.encode(_rows(("what is red", "blue"))).batch([0]))
    assert every == ["what", "is", "red", "blue", "</s>"]
    assert answer == ["blue", "</s>"]


def test_a_long_prompt_loses_its_start_and_a_long_answer_its_end(tiny_llama: Path) -> None:
    task = _plain(tiny_llama, max_length=6)
    encoded = task.encode(_rows(("what is the colour red", "blue green"), ("what is", "blue " * 9)))
    assert _words(task, encoded.batch([0])) == (
        ["the", "colour", "red", "blue", "green", "</s>"],
        ["blue", "green", "</s>"],
    )
    assert _words(task, encoded.batch([1])) == (["is"] + ["blue"] * 5, ["blue"] * 5)


def test_a_records_loss_and_accuracy_by_hand(cases: Cases) -> None:
    task, _ = cases["causal_lm"]
    encoded = task.encode(_rows(("what is red", "blue green"), ("what", "white"), ("what colour has red", "red")))
    model, batch = task.load_base(), encoded.batch([0, 1, 2])
    scores = log_softmax(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, dim=-1)
    values = task.evaluate(model, batch)
    for row in range(3):
        places = [place for place in range(1, batch["labels"].shape[1]) if batch["labels"][row, place] != NO_LOSS]
        tokens = [batch["input_ids"][row, place] for place in places]
        losses = [-scores[row, place - 1, token] for place, token in zip(places, tokens, strict=True)]
        hits = [scores[row, place - 1].argmax() == token for place, token in zip(places, tokens, strict=True)]
        torch.testing.assert_close(values["loss"][row], torch.stack(losses).mean())
        assert values["token_accuracy"][row].item() == pytest.approx(sum(map(float, hits)) / len(hits))


def test_token_accuracy_counts_each_answer_token_once(cases: Cases) -> None:
    task, _ = cases["causal_lm"]
    batch = task.encode(_rows(("what", "red green"), ("what", "blue"))).batch([0, 1])
    red, _, end = batch["labels"][0][batch["labels"][0] != NO_LOSS].tolist()

    class Says(torch.nn.Module):
        """Says `red` at every place but the last of each answer, and `end` there."""

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            following = torch.roll(input_ids, -1, dims=1)
            said = torch.where(following == end, end, red)
            logits = torch.nn.functional.one_hot(said, len(task.tokenizer)).float()
            return type("Output", (), {"logits": logits})

    accuracy = task.evaluate(Says(), batch)["token_accuracy"]
    torch.testing.assert_close(accuracy, torch.tensor([2 / 3, 1 / 2]))


def test_the_prompts_tokens_have_no_loss_of_their_own(cases: Cases) -> None:
    task, _ = cases["causal_lm"]
    model, batch = task.load_base(), task.encode(_rows(("what is red", "blue"))).batch([0])
    logits = model(batch["input_ids"]).logits.detach().requires_grad_()

    class Fixed(torch.nn.Module):
        def forward(self, **_: Any) -> Any:
            return type("Output", (), {"logits": logits})

    task.losses(Fixed(), batch).sum().backward()
    touched = logits.grad[0].abs().sum(dim=-1) > 0
    predicting = torch.roll(batch["labels"][0] != NO_LOSS, -1)
    assert touched.tolist() == predicting.tolist()


def test_computing_logits_at_answers_only_changes_nothing(cases: Cases) -> None:
    task, rows = cases["causal_lm"]
    model, batch = task.load_base(), task.encode(rows).batch(range(6))

    class Whole(torch.nn.Module):
        """The same model with a signature that cannot choose positions."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
            return model(input_ids, attention_mask=attention_mask, use_cache=use_cache)

    torch.testing.assert_close(task.losses(model, batch), task.losses(Whole(), batch))
    torch.testing.assert_close(task.logits(model, batch), task.logits(Whole(), batch))


def test_peft_wrapped_models_give_the_same_logits(cases: Cases) -> None:
    from peft import LoraConfig, PeftModelForCausalLM

    task, rows = cases["causal_lm"]
    batch = task.encode(rows).batch(range(4))
    plain = task.logits(task.load_base(), batch)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    wrapped = PeftModelForCausalLM(task.load_base(), config).eval()
    torch.testing.assert_close(task.logits(wrapped, batch), plain)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["what"]}, "no column 'answer'"),
        ({"prompt": ["what", "what"], "answer": ["red", ""]}, "row 1 has no token in its answer"),
        ({"prompt": ["what"], "answer": ["  "]}, "row 0 has no token in its answer"),
        ({"prompt": [None], "answer": ["red"]}, "row 0 has None in column 'prompt'"),
    ],
)
def test_bad_rows_are_named(cases: Cases, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cases["causal_lm"][0].encode(Dataset.from_dict(columns))


def test_a_template_that_hides_where_the_answer_starts_is_refused(tiny_llama: Path) -> None:
    task = make_task(tiny_config(tiny_llama, Path("qa.jsonl")), None)
    task.tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(ModelError, match="chat template"):
        task.encode(_rows(("what", "red")))


def test_one_token_leaves_no_room(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="no room"):
        make_task(tiny_config(tiny_llama, Path("qa.jsonl"), task={"max_length": 1}), None)


def test_there_is_no_new_head(cases: Cases) -> None:
    task, _ = cases["causal_lm"]
    assert task.head_parameters(task.load_base()) == []
