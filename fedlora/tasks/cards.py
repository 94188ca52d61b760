"""What a model card says about use: Python that needs transformers and PEFT only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.tasks.loading import ModelLoader
from fedlora.tasks.sources import base_text, gguf_file


@dataclass(frozen=True)
class Recipe:
    """How a stock class is used: its name, its processor's, an example, and the code from `records` to `logits`.

    code: runs after `model` and `processor` exist and leaves `logits`, one row a record. imports, prepare,
    processor_options: lines and arguments that only some tasks need.
    """

    auto: str
    processor: str
    example: Sequence[Mapping[str, Any]]
    code: str
    imports: str = ""
    prepare: str = ""
    processor_options: str = ""


def card(loader: ModelLoader, labels: Sequence[str], recipe: Recipe) -> dict[str, Any]:
    """`base`, `labels`, `snippet` and `merged_snippet`.

    Both snippets are whole programs that print the logits of some records as JSON, one row a record. The last
    argument is a JSON file with a list of records; without it there is an example.
    snippet: arguments base_dir, adapter_dir (which holds the tokenizer or image processor too).
    merged_snippet: argument model_dir, a merged model with its tokenizer or image processor.
    """
    return {
        "base": base_text(loader.model, loader.seed),
        "labels": list(labels),
        "snippet": _adapter_program(loader, labels, recipe),
        "merged_snippet": _merged_program(recipe),
    }


def _adapter_program(loader: ModelLoader, labels: Sequence[str], recipe: Recipe) -> str:
    options = ["dtype=torch.float32"]
    if labels:
        options += ["num_labels=len(labels)", "ignore_mismatched_sizes=True"]
    gguf = gguf_file(loader.model)
    if gguf is not None:
        options.append(f"gguf_file={gguf!r}")
    names = f"labels = {json.dumps(list(labels), ensure_ascii=False)}\n" if labels else ""
    return _ADAPTER.format(
        imports=recipe.imports,
        auto=recipe.auto,
        processor=recipe.processor,
        processor_options=recipe.processor_options,
        options=", ".join(options),
        labels=names,
        example=_example(recipe),
        body=_body(recipe),
    )


def _merged_program(recipe: Recipe) -> str:
    return _MERGED.format(
        imports=recipe.imports,
        auto=recipe.auto,
        processor=recipe.processor,
        processor_options=recipe.processor_options,
        example=_example(recipe),
        body=_body(recipe),
    )


def _body(recipe: Recipe) -> str:
    return (recipe.prepare + "\n" if recipe.prepare else "") + recipe.code


def _example(recipe: Recipe) -> str:
    return json.dumps(list(recipe.example), ensure_ascii=False)


_ADAPTER = """\
import json
import sys

{imports}import torch
from peft import PeftModel
from transformers import {auto}, {processor}

base_dir, adapter_dir = sys.argv[1:3]
records = json.load(open(sys.argv[3])) if len(sys.argv) > 3 else {example}
{labels}
processor = {processor}.from_pretrained(adapter_dir{processor_options})
base = {auto}.from_pretrained(base_dir, {options})
model = PeftModel.from_pretrained(base, adapter_dir).eval()
{body}
print(json.dumps(logits.tolist()))
"""

_MERGED = """\
import json
import sys

{imports}import torch
from transformers import {auto}, {processor}

model_dir = sys.argv[1]
records = json.load(open(sys.argv[2])) if len(sys.argv) > 2 else {example}

processor = {processor}.from_pretrained(model_dir{processor_options})
model = {auto}.from_pretrained(model_dir, dtype=torch.float32).eval()
{body}
print(json.dumps(logits.tolist()))
"""

TEXT_INPUTS = """\
texts = [[record[part] for part in ("text", "text_pair") if part in record] for record in records]
inputs = processor(
    *map(list, zip(*texts)), padding=True, truncation=True, max_length={max_length}, return_tensors="pt"
)
with torch.no_grad():
    logits = model(**inputs).logits{pool}"""

IMAGE_INPUTS = """\
images = [Image.fromarray(np.asarray(record["image"], np.uint8)).convert("{mode}") for record in records]
inputs = processor(images, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits"""

CHAT_TOKENS = """\
user = {"role": "user", "content": record["prompt"]}
assistant = {"role": "assistant", "content": record["answer"]}
before = processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
after = processor.apply_chat_template([user, assistant], tokenize=False)[len(before):]
start = []"""

PLAIN_TOKENS = """\
before, after = record["prompt"] + "\\n", record["answer"] + (processor.eos_token or "")
start = [token for token in processor("")["input_ids"] if token == processor.bos_token_id]"""

ANSWER_INPUTS = """\
rows = []
for record in records:
{tokens}
    prompt, answer = (processor(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    while processor.eos_token_id in answer and answer[-1] != processor.eos_token_id:
        answer.pop()  # what the template writes after the end of the answer
    answer = answer[: {max_length} - 1]
    prompt = (start + prompt)[-({max_length} - len(answer)) :]
    with torch.no_grad():
        every = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    rows.append(every[len(prompt) - 1 : -1].mean(0))  # the places that predict the answer's tokens
logits = torch.stack(rows)"""
