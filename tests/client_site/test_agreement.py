"""What does not fit a run is named before work begins, all of it, and the server hears nothing of the files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from safetensors.numpy import load_file, save_file

from fedlora.adapters.manifest import Manifest, TensorSpec
from fedlora.client.agreement import agreed_worker, find_mismatches, mismatches
from fedlora.client.deployed import DeployedSite
from fedlora.client.handler import SiteHandler
from fedlora.client.home import SiteHome
from fedlora.client.processor import processor_digest
from fedlora.client.site_data import LocalData
from fedlora.client.worker import Worker
from fedlora.config.strategy import make_strategy
from fedlora.link import content
from fedlora.link.v1.link_pb2 import Offer
from fedlora.privacy.declined import DeclinedError
from fedlora.server.records import Outcome
from fedlora.simulations.simulate import Watch, run
from fedlora.simulations.sites import common_to
from fedlora.wire import TrainTask, to_record, write_task
from fedlora.wire_start import read_work
from tests.client_site.places import FileSite, SiteGrid, dealt_sites, of_sites, rewritten
from tests.tiny import tiny_config


@pytest.fixture
def sites(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> list[FileSite]:
    config = tiny_config(tiny_bert, tiny_text_csv)
    return dealt_sites(config, tiny_bert, tmp_path)


@pytest.fixture
def asked(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> TrainTask:
    """What a server asks of site 0, as it arrives before its arrays."""
    config = of_sites(tiny_config(tiny_bert, tiny_text_csv), tmp_path / "runs")
    worker, method = Worker(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    common = common_to(worker, fixed=False)
    task = TrainTask(
        run="run",
        round=1,
        client=0,
        config=config,
        manifest=state.manifest,
        tensors={},
        once=None,
        fixed_digest="",
        labels=common.labels,
        tokenizer_digest=common.tokenizer_digest,
        base_digest=common.base_digest,
    )
    content = write_task(task, to_record(state.shared), None)
    work = read_work(RecordDict(dict(content.config_records)))
    assert isinstance(work, TrainTask)
    return work


Change = Callable[[FileSite, Path], Any]


def relabelled(site: FileSite, folder: Path) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "label": "zebra" if row["label"] == "animal" else row["label"]}

    site.data = LocalData(rewritten(Path(str(site.data.path)), change, folder / "changed.jsonl"))


def wrongly_mapped(site: FileSite, folder: Path) -> None:
    site.data = replace(site.data, labels={"animal": "beast"})


def without_text(site: FileSite, folder: Path) -> None:
    rename = {"text": "note", "label": "label"}
    path = rewritten(
        Path(str(site.data.path)), lambda row: {rename[k]: v for k, v in row.items() if k in rename}, folder / "x.jsonl"
    )
    site.data = LocalData(path)


def badly_mapped(site: FileSite, folder: Path) -> None:
    site.data = replace(site.data, columns={"text": "remark"})


def other_weights(site: FileSite, folder: Path) -> None:
    model = shutil.copytree(Path(str(site.model.path)), folder / "model")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "query.weight" in name)
    weights[name] = np.nextafter(weights[name], np.float32(1.0))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    site.model = replace(site.model, path=model)


def other_words(site: FileSite, folder: Path) -> None:
    model = shutil.copytree(Path(str(site.model.path)), folder / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zebra"] = tokenizer["model"]["vocab"].pop("animal0")
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    site.model = replace(site.model, path=model)


def no_model(site: FileSite, folder: Path) -> None:
    site.model = replace(site.model, path=folder / "nowhere")


@pytest.mark.parametrize(
    ("change", "count", "text", "told"),
    [
        (
            relabelled,
            1,
            "has the labels zebra, which the run does not know; it knows animal, food, tool",
            "labels of the",
        ),
        (wrongly_mapped, 1, "has the labels beast", "labels of the run"),
        (without_text, 1, "has no column 'text' for 'text'", "columns and labels of the run"),
        (
            badly_mapped,
            1,
            "has no column 'remark' for 'text', which the run reads; there are: text, source, label",
            "columns and labels of the run",
        ),
        (other_weights, 1, "base model has the SHA-256", "base model has the SHA-256"),
        (other_words, 1, "tokenizer or image processor has the SHA-256", "tokenizer or image processor has"),
        (no_model, 3, "cannot be loaded", "tokenizer or image processor cannot be loaded"),
    ],
)
def test_each_difference_is_named(
    sites: list[FileSite], asked: TrainTask, tmp_path: Path, change: Change, count: int, text: str, told: str
) -> None:
    assert mismatches(asked, sites[0].worker(asked)) == []
    change(sites[0], tmp_path)
    found = find_mismatches(asked, sites[0].worker(asked))
    assert len(found) == count
    assert text in found[0].text
    assert told in found[0].told
    for each in found:
        assert each.text.endswith(".")
        assert ".." not in each.text
        assert not any(word in each.told for word in (str(tmp_path), "zebra", "beast", "remark", "note"))
    with pytest.raises(DeclinedError, match=told) as caught:
        agreed_worker(asked, sites[0])
    assert text in caught.value.detail
    assert str(tmp_path) not in str(caught.value)


def test_both_digests_are_in_the_sentence(sites: list[FileSite], asked: TrainTask) -> None:
    worker = sites[0].worker(asked)
    (sentence,) = mismatches(replace(asked, base_digest="ab" * 32), worker)
    assert "abababababab…" in sentence
    assert worker.base_digest[:12] in sentence


def test_all_that_is_wrong_is_named_at_once(sites: list[FileSite], asked: TrainTask, tmp_path: Path) -> None:
    relabelled(sites[0], tmp_path)
    work = replace(asked, base_digest="ab" * 32, tokenizer_digest="cd" * 32)
    found = mismatches(work, sites[0].worker(work))
    assert [word in sentence for word, sentence in zip(("zebra", "tokenizer", "base"), found, strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda name, spec: (
                name.replace("query", "kwery"),
                replace(spec, module=spec.module.replace("query", "kwery")),
            ),
            "no module",
        ),
        (lambda name, spec: (name, replace(spec, shape=(spec.shape[0] + 1, *spec.shape[1:]))), "has the shape"),
    ],
    ids=["another module", "another shape"],
)
def test_an_adapter_for_another_model_is_named(
    sites: list[FileSite],
    asked: TrainTask,
    change: Callable[[str, TensorSpec], tuple[str, TensorSpec]],
    text: str,
) -> None:
    manifest = asked.manifest
    tensors = dict(change(name, spec) for name, spec in manifest.tensors.items())
    other = Manifest(manifest.form, manifest.r, manifest.scaling, manifest.seed, tensors)
    found = mismatches(replace(asked, manifest=other), sites[0].worker(asked))
    assert len(found) == 3
    assert all(text in sentence for sentence in found)


def test_a_head_for_other_labels_is_named(sites: list[FileSite], asked: TrainTask) -> None:
    labels = ("animal", "food", "tool", "vehicle")
    work = replace(asked, labels=labels)
    found = mismatches(work, sites[0].worker(work))
    assert len(found) == 2
    assert "'head.classifier.weight' has the shape (3, 32), and this site's model has the shape (4, 32)" in found[0]


def test_a_tokenizer_is_the_same_before_and_after_use(sites: list[FileSite], asked: TrainTask) -> None:
    worker = sites[0].worker(asked)
    fresh = processor_digest(worker.task)
    worker.encoded("train")
    assert processor_digest(worker.task) == fresh == asked.tokenizer_digest


def test_an_image_processor_has_a_digest_of_its_settings(tiny_vit: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_vit, tiny_images)
    one = Worker(config).tokenizer_digest
    (tmp_path / "vit").mkdir()
    shutil.copytree(tiny_vit, tmp_path / "vit", dirs_exist_ok=True)
    worker = Worker(tiny_config(tmp_path / "vit", tiny_images))
    worker.task.save_processor(str(tmp_path / "vit"))
    saved = Worker(tiny_config(tmp_path / "vit", tiny_images))
    assert saved.tokenizer_digest == one
    settings = json.loads((tmp_path / "vit" / "preprocessor_config.json").read_text())
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.25]}))
    assert Worker(tiny_config(tmp_path / "vit", tiny_images)).tokenizer_digest != one


def test_a_site_that_does_not_fit_declines_and_the_run_goes_on(
    tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_bert, tiny_text_csv, **{"federation.cohort": 4})
    sites = dealt_sites(config, tiny_bert, tmp_path)
    other_words(sites[1], tmp_path)
    history = run(of_sites(config, tmp_path / "runs"), Watch(), grid=SiteGrid(sites))
    for record in history.rounds[1:]:
        assert [row.outcome for row in record.roster] == [
            Outcome.DECLINED if client == 1 else Outcome.REPORTED for client in range(4)
        ]
        assert "tokenizer" in record.roster[1].reason


def test_labels_of_shared_data_are_compared_too(asked: TrainTask, tiny_bert: Path, tiny_text_csv: Path) -> None:
    worker = Worker(tiny_config(tiny_bert, tiny_text_csv))
    (first, *_) = mismatches(replace(asked, labels=("tool", "food", "animal")), worker)
    assert first == "The run's labels are tool, food, animal, this site's animal, food, tool."


def test_an_offer_that_comes_while_the_policy_is_broken_is_declined_without_a_word_of_it(
    asked: TrainTask, tmp_path: Path
) -> None:
    home = SiteHome.create(tmp_path / "home")
    home.policy.write_text("secret-model: [")
    facts = content.facts(write_task(asked, to_record({}), None))
    offer = Offer(work="0" * 64, run=asked.run, round=asked.round, kind="train", facts=facts)
    said = SiteHandler(DeployedSite(home, "localhost:1"), "one").decide(offer)
    assert said == "The site's policy cannot be read at the moment."
