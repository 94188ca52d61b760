"""Run as a program of its own: what exported and merged folders give with transformers and PEFT alone.

Argument: a JSON file with jobs. One kind has auto (class name), base, options, adapter (or null), inputs and out
(safetensors); the other has program (a model card's), arguments and out (what it prints).
"""

import contextlib
import json
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file


def logits(job: dict[str, Any]) -> None:
    """The logits of a folder, or of a base with an adapter."""
    auto = getattr(transformers, job["auto"])
    model = auto.from_pretrained(job["base"], dtype=torch.float32, **job["options"])
    if job["adapter"]:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT's, e.g. about missing keys
            model = PeftModel.from_pretrained(model, job["adapter"])
    with torch.no_grad():
        found = model.eval()(**load_file(job["inputs"])).logits
    save_file({"logits": found.contiguous()}, job["out"])


def program(job: dict[str, Any]) -> None:
    """What a model card's program prints."""
    sys.argv = [job["program"], *job["arguments"]]
    with Path(job["out"]).open("w") as out, contextlib.redirect_stdout(out):
        runpy.run_path(job["program"], run_name="__main__")


for each in json.loads(Path(sys.argv[1]).read_text()):
    program(each) if "program" in each else logits(each)
if any(name.partition(".")[0] == "fedlora" for name in sys.modules):
    sys.exit("fedlora was imported")
