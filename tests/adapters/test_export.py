"""Exported and merged folders give the run's logits in a process that has no fedlora."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file, save_file

from fedlora.adapters.adapted import AdaptedModel, head_tensors
from fedlora.adapters.attach import attach
from fedlora.adapters.export import ORIGIN_FILE, export_adapter, read_origin
from fedlora.adapters.manifest import Delivery, Form, Role, TensorSpec
from fedlora.adapters.merge import merge_adapter
from fedlora.adapters.modules import find_modules
from fedlora.adapters.peft_format import CONFIG_FILE, fold, head_modules, read_adapter, weights_bytes
from fedlora.config.schema import RunConfig
from fedlora.errors import ModelError
from fedlora.tasks.base import Task
from tests.adapters.making import make_manifest, random_tensors, task_of, tiny_gpt2, token_batch
from tests.tiny import LABELS, build_tokenizer, tiny_config

PROGRAM = Path(__file__).with_name("without_fedlora.py")
CARD_CASE = "bert-sb-mean"
TEXTS = ("animal3 bade food1", "tool7")
FIGURES = {"test_accuracy": 0.875, "test_loss": float("nan")}


@dataclass(frozen=True)
class Case:
    """One exported and merged adapter, and the logits that fedlora gets."""

    config: RunConfig
    task: Task
    adapted: AdaptedModel
    exported: Path
    merged: Path
    inputs: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    base_logits: torch.Tensor


def make_case(
    folder: Path, config: RunConfig, method: str, inputs: Mapping[str, torch.Tensor], *, train_head: bool = True
) -> Case:
    """Random factors and, if it is trained, a random head; exported and merged into `folder`."""
    task = task_of(config)
    base = task.load_base()
    names = task.head_parameters(base)
    head = head_tensors(base, names)
    modules = find_modules(base, config.adapter.targets, head=names)
    manifest = make_manifest(method, modules, scaling=config.adapter.s, head=head, train_head=train_head)
    tensors = random_tensors(manifest) if train_head else {**random_tensors(manifest), **head}
    with torch.no_grad():
        base_logits = base(**inputs).logits
        adapted = attach(base, manifest)
        adapted.load(tensors)
        logits = adapted.model(**inputs).logits
    facts: Any = {"task": task, "config": config, "summary": FIGURES}
    exported = export_adapter(folder / "adapter", manifest=manifest, tensors=tensors, **facts)
    merged = merge_adapter(task.load_base(), fold(manifest, tensors), folder / "merged", **facts)
    return Case(config, task, adapted, exported, merged, inputs, logits, base_logits)


def gpt2_folder(folder: Path) -> Path:
    folder.mkdir()
    tiny_gpt2(folder)
    return folder


def roberta_folder(folder: Path) -> Path:
    words = len(build_tokenizer(folder))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(vocab_size=words, max_position_embeddings=80, pad_token_id=0, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformers.RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bert: Path,
    tiny_text_csv: Path,
    tiny_llama: Path,
    tiny_qa_jsonl: Path,
    tiny_vit: Path,
    tiny_images: Path,
) -> dict[str, Case]:
    """All combinations; made once."""
    root = tmp_path_factory.mktemp("exports")
    words = token_batch()
    pixels = {"pixel_values": torch.rand(3, 1, 14, 14, generator=torch.Generator().manual_seed(0))}
    found = {}
    for method in ("lora", "ffa", "sb"):
        for head in ("mean", "stock"):
            config = tiny_config(tiny_bert, tiny_text_csv, **{"model.head": head, "adapter.scaling": 1.7})
            found[f"bert-{method}-{head}"] = make_case(root / f"bert-{method}-{head}", config, method, words)
    frozen = tiny_config(tiny_bert, tiny_text_csv, **{"model.train_head": False})
    found["bert-frozen-head"] = make_case(root / "frozen", frozen, "lora", words, train_head=False)
    gpt2 = {"model.head": "stock", "adapter.targets": None}
    config = tiny_config(gpt2_folder(root / "gpt2-base"), tiny_text_csv, **gpt2)
    found["gpt2-sb-conv1d"] = make_case(root / "gpt2", config, "sb", words)
    config = tiny_config(roberta_folder(root / "roberta-base"), tiny_text_csv, **{"model.head": "stock"})
    found["roberta-nested-head"] = make_case(root / "roberta", config, "lora", words)
    found["llama"] = make_case(root / "llama", tiny_config(tiny_llama, tiny_qa_jsonl), "sb", words)
    found["vit"] = make_case(root / "vit", tiny_config(tiny_vit, tiny_images), "lora", pixels)
    return found


NAMES = [
    *(f"bert-{method}-{head}" for method in ("lora", "ffa", "sb") for head in ("mean", "stock")),
    "bert-frozen-head",
    "gpt2-sb-conv1d",
    "roberta-nested-head",
    "llama",
    "vit",
]


@pytest.fixture(scope="module")
def outside(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `<case>.<adapter or merged>` (logits) and `card.<…>` (printed), from a process without fedlora."""
    root = tmp_path_factory.mktemp("outside")
    jobs = [job for name, case in cases.items() for job in jobs_of(root, name, case)]
    (root / "jobs.json").write_text(json.dumps([*jobs, *card_jobs(root, cases[CARD_CASE])]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(PROGRAM), str(root / "jobs.json")]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root


def jobs_of(root: Path, name: str, case: Case) -> list[dict[str, Any]]:
    """PEFT's way and the merged way of one case."""
    save_file(dict(case.inputs), root / f"{name}.inputs")
    labels = case.task.card()["labels"]
    options: dict[str, Any] = {"num_labels": len(labels), "ignore_mismatched_sizes": True} if labels else {}
    shared = {"auto": case.task.loader.auto.__name__, "inputs": str(root / f"{name}.inputs")}  # type: ignore[attr-defined]
    adapter = {"base": str(case.config.model.path), "options": options, "adapter": str(case.exported)}
    merged = {"base": str(case.merged), "options": {}, "adapter": None}
    return [
        {**shared, **adapter, "out": str(root / f"{name}.adapter")},
        {**shared, **merged, "out": str(root / f"{name}.merged")},
    ]


def card_jobs(root: Path, case: Case) -> list[dict[str, Any]]:
    """The programs in both README.md, as printed there."""
    (root / "records.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    folders = {"adapter": [str(case.config.model.path), str(case.exported)], "merged": [str(case.merged)]}
    jobs = []
    for kind, arguments in folders.items():
        card = (Path(arguments[-1]) / "README.md").read_text()
        found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
        assert found is not None
        (root / f"{kind}.py").write_text(found[1])
        arguments = [*arguments, str(root / "records.json")]
        jobs.append({"program": str(root / f"{kind}.py"), "arguments": arguments, "out": str(root / f"card.{kind}")})
    return jobs


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_the_runs_without_fedlora(name: str, kind: str, cases: dict[str, Case], outside: Path) -> None:
    case = cases[name]
    assert (case.logits - case.base_logits).abs().max() > 1e-3, "the adapter must matter, or this tests nothing"
    found = load_file(outside / f"{name}.{kind}")["logits"]
    assert (found - case.logits).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_cards_program_runs_as_printed(kind: str, cases: dict[str, Case], outside: Path) -> None:
    case = cases[CARD_CASE]
    encoded = case.task.encode(Dataset.from_dict({"text": list(TEXTS), "label": [0, 0]}))
    with torch.no_grad():
        expected = case.task.logits(case.adapted.model, encoded.batch([0, 1]))
    np.testing.assert_allclose(json.loads((outside / f"card.{kind}").read_text()), expected.numpy(), atol=1e-5)


def test_the_configuration_is_pefts_and_says_all(cases: dict[str, Case]) -> None:
    case = cases["bert-sb-mean"]
    config = json.loads((case.exported / CONFIG_FILE).read_text())
    wanted = {
        "peft_type": "LORA",
        "task_type": "TOKEN_CLS",
        "r": 2,
        "lora_alpha": 3.4,
        "inference_mode": True,
        "modules_to_save": ["classifier"],
        "base_model_name_or_path": str(case.config.model.path),
    }
    assert {key: config[key] for key in wanted} == wanted
    assert config["target_modules"] == sorted(case.adapted.manifest.modules())


def test_an_export_can_be_read_and_merged_from_its_folder_alone(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["bert-sb-stock"]
    config, labels, figures = read_origin(case.exported)
    assert labels == LABELS
    assert figures["test_accuracy"] == 0.875
    assert np.isnan(figures["test_loss"])
    assert config.model == case.config.model
    adapter = read_adapter(case.exported)
    assert (adapter.r, adapter.scaling) == (2, pytest.approx(1.7, rel=1e-15))
    merged = merge_adapter(
        case.task.load_base(), adapter, tmp_path / "m", task=case.task, config=config, summary=figures
    )
    first, second = (load_file(folder / "model.safetensors") for folder in (merged, case.merged))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_the_origin_tells_no_path_of_store_output_or_data(cases: dict[str, Case]) -> None:
    made = json.loads((cases["vit"].exported / ORIGIN_FILE).read_text())["config"]
    assert "store" not in made
    assert "output" not in made
    assert "path" not in made["data"]


def test_equal_adapters_give_equal_bytes(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["bert-lora-mean"]
    again = export_adapter(
        tmp_path / "again",
        manifest=case.adapted.manifest,
        tensors=case.adapted.read(case.adapted.manifest),
        task=case.task,
        config=case.config,
        summary=FIGURES,
    )
    files = {path.name for path in case.exported.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= files
    for name in files:
        assert (again / name).read_bytes() == (case.exported / name).read_bytes(), name


def test_lora_sb_is_folded_in_float64() -> None:
    manifest = make_manifest("sb", {"m": (5, 4)})
    tensors = random_tensors(manifest)
    (a, b) = fold(manifest, tensors).factors["m"]
    assert a is tensors["m.lora_A"]
    exact = tensors["m.lora_B"].astype(np.float64) @ tensors["m.lora_R"].astype(np.float64)
    assert np.array_equal(b, exact)
    with pytest.raises(ModelError, match=r"lacks 1 of its tensors, e\.g\. 'm\.lora_R'"):
        fold(manifest, {name: value for name, value in tensors.items() if name != "m.lora_R"})


def test_every_form_can_be_folded() -> None:
    from fedlora.adapters.peft_format import FORMS

    assert set(FORMS) == set(Form)


@pytest.mark.parametrize(
    ("parameters", "task_type", "modules"),
    [
        (["classifier.weight", "classifier.bias"], "TOKEN_CLS", ["classifier"]),
        (["classifier.dense.weight", "classifier.out_proj.weight"], "SEQ_CLS", ["classifier"]),
        (["pre_classifier.weight", "classifier.weight"], "SEQ_CLS", ["pre_classifier", "classifier"]),
        (["score.weight"], "SEQ_CLS", ["score"]),
        (["head.dense.weight", "head.weight"], None, ["head"]),
        ([], "CAUSAL_LM", []),
    ],
)
def test_head_modules_are_the_outermost_that_peft_wraps(
    parameters: list[str], task_type: str | None, modules: list[str]
) -> None:
    assert head_modules(parameters, task_type) == modules


def test_a_head_outside_of_any_module_is_an_error() -> None:
    with pytest.raises(ModelError, match="'bias' is in no module"):
        head_modules(["bias"], None)


def test_a_folder_with_something_else_is_never_replaced(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["bert-lora-mean"]
    (tmp_path / "precious.txt").write_text("mine")
    tensors = case.adapted.read(case.adapted.manifest)
    facts: Any = {"manifest": case.adapted.manifest, "task": case.task, "config": case.config, "summary": {}}
    with pytest.raises(ModelError, match=r"exists and holds something else \(no adapter_config\.json\)"):
        export_adapter(tmp_path, tensors=tensors, **facts)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failed_export_leaves_the_earlier_one_and_no_draft(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases["bert-lora-mean"]
    facts: Any = {"manifest": case.adapted.manifest, "task": case.task, "config": case.config, "summary": {}}
    tensors = case.adapted.read(case.adapted.manifest)
    export_adapter(tmp_path / "a", tensors=tensors, **facts)
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()

    def fail(adapter: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("fedlora.adapters.export.weights_bytes", fail)
    with pytest.raises(MemoryError):
        export_adapter(tmp_path / "a", tensors=random_tensors(case.adapted.manifest, 1), **facts)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    monkeypatch.undo()
    export_adapter(tmp_path / "a", tensors=random_tensors(case.adapted.manifest, 1), **facts)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() != before


def test_foreign_or_broken_adapters_are_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no readable PEFT adapter"):
        read_adapter(tmp_path)
    with pytest.raises(ModelError, match="does not say how it was made"):
        read_origin(tmp_path)
    manifest = make_manifest("lora", {"m": (5, 4)})
    (tmp_path / "adapter_model.safetensors").write_bytes(weights_bytes(fold(manifest, random_tensors(manifest))))
    good = json.loads((cases["bert-lora-mean"].exported / CONFIG_FILE).read_text())
    for change, message in [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"m": 3}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
    ]:
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**good, **change}))
        with pytest.raises(ModelError, match=message):
            read_adapter(tmp_path)


def test_specs_of_a_frozen_head_are_head_specs_all_the_same() -> None:
    spec = TensorSpec((2,), Role.HEAD, "", False, Delivery.ONCE)
    manifest = make_manifest("lora", {"m": (5, 4)})
    frozen = type(manifest)(
        manifest.form, manifest.r, manifest.scaling, 0, {**manifest.tensors, "head.classifier.bias": spec}
    )
    assert list(fold(frozen, random_tensors(frozen)).head) == ["classifier.bias"]
