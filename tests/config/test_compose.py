"""What wins over what, and that composing leaves Hydra as it was."""

from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fedlora.config.compose import compose, compose_sweep, expand_sweep
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_default_is_fedavg_on_trec() -> None:
    config = compose([])
    assert (config.strategy.name, config.data.name, config.model.name) == ("fedavg", "trec", "minilm")
    assert config.data.partition.name == "dirichlet"
    assert config.train.threads is None


def test_overrides_as_hydra_users_write_them() -> None:
    config = compose(
        [
            *("strategy=fed_sb", "adapter.r=32", "federation.clients=50", "data/partition=dirichlet"),
            *("data.partition.alpha=0.1", "output=DIR", "adapter.targets=[query,value]"),
        ]
    )
    assert (config.strategy.name, config.adapter.r, config.federation.clients) == ("fed_sb", 32, 50)
    assert (config.data.partition.alpha, config.output) == (0.1, Path("DIR"))
    assert config.adapter.targets == ("query", "value")


def test_a_strategy_brings_its_defaults() -> None:
    assert compose(["strategy=fed_sb"]).adapter.r == 64
    assert compose(["strategy=fed_sb"]).train.lr == 1e-2
    assert compose(["strategy=fedavg"]).adapter.r == 8


def test_precedence_strategy_experiment_file_command_line(tmp_path: Path) -> None:
    experiments = tmp_path / "conf" / "experiment"
    experiments.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /strategy: fed_sb\nadapter:\n  r: 11\ntrain:\n  steps: 3\n"
    (experiments / "eleven.yaml").write_text(text, encoding="utf-8")
    file = write(tmp_path, "experiment: eleven\ntrain: {steps: 4, batch: 5}\n")

    config = compose(["train.batch=6"], config_dir=tmp_path / "conf", file=file)

    assert config.strategy.name == "fed_sb"  # the experiment over the main default
    assert config.train.lr == 1e-2  # the strategy's default over the schema's
    assert config.adapter.r == 11  # the experiment over the strategy's default
    assert config.train.steps == 4  # the file over the experiment
    assert config.train.batch == 6  # the command line over the file


def test_a_file_chooses_options_by_plain_text(tmp_path: Path) -> None:
    file = write(tmp_path, "strategy: fed_sb\ndata/partition: shards\ndata: sms_spam\nmodel.head: stock\nseed: 3\n")
    config = compose([], file=file)
    assert (config.strategy.name, config.data.partition.name, config.data.name) == ("fed_sb", "shards", "sms_spam")
    assert (config.model.head, config.seed) == ("stock", 3)


def test_a_nested_text_for_the_partition_chooses_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml:2: data.partition is a group: .*data/partition=iid"):
        compose([], file=write(tmp_path, "data:\n  partition: iid\n"))


def test_the_command_line_wins_a_whole_group(tmp_path: Path) -> None:
    file = write(tmp_path, "strategy:\n  name: fed_sb\n  init: random\nmodel: smollm2\nmodel.train_head: false\n")
    config = compose(["strategy=lora_fair", "model=minilm"], file=file)
    assert config.strategy.name == "lora_fair"
    assert "init" not in config.strategy.options
    assert (config.model.name, config.model.gguf, config.model.train_head) == ("minilm", None, True)


def test_a_resolved_configuration_is_a_file_that_gives_itself(tmp_path: Path) -> None:
    config = compose(["experiment=image", "strategy=lora_fair", "strategy.solver=ridge", "seed=4"])
    file = write(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))
    assert compose([], file=file) == config


def test_numbers_in_yaml_are_those_of_hydra(tmp_path: Path) -> None:
    config = compose([], file=write(tmp_path, "train: {lr: 1e-3}\nname: 2024-01-02\n"))
    assert (config.train.lr, config.name) == (1e-3, "2024-01-02")


def test_interpolation_in_the_users_own_words(tmp_path: Path) -> None:
    config = compose(["eval.batch=${train.batch}"], file=write(tmp_path, "seed: 7\nname: run-${seed}\n"))
    assert (config.name, config.eval.batch) == ("run-7", config.train.batch)


def test_strategy_options_are_complete_and_typed() -> None:
    options = compose(["strategy=lora_fair", "strategy.max_steps='7'"]).strategy.options
    assert options["max_steps"] == 7
    assert options["solver"] == "cosine"


def test_free_keys_of_an_architecture() -> None:
    config = compose(["experiment=image", "model.architecture.num_hidden_layers=2"])
    assert config.model.architecture is not None
    assert config.model.architecture["num_hidden_layers"] == 2
    assert config.model.architecture["model_type"] == "vit"


def test_a_config_dir_adds_options(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine" / "data"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("source: local\nname: mine\npath: x.csv\ntext: t\nlabel: l\n", encoding="utf-8")
    assert compose(["data=mine"], config_dir=folder.parent).data.name == "mine"


def test_a_config_dir_may_not_hide_an_option_of_ours(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trec.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data/trec.yaml is an option of fedlora's own"):
        compose([], config_dir=tmp_path)


def test_a_config_dir_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        compose([], config_dir=tmp_path / "none")


def test_broken_yaml_in_a_config_dir_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.yaml").write_text("name: [1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be put together"):
        compose(["data=bad"], config_dir=tmp_path)


def test_hydra_in_use_goes_on_as_before(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("answer: 42\n", encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        assert compose([]).strategy.name == "fedavg"
        assert hydra_compose("theirs").answer == 42
    GlobalHydra.instance().clear()
    compose([])
    assert not GlobalHydra.instance().is_initialized()


def test_sweeps_in_hydras_syntax() -> None:
    jobs = expand_sweep(["seed=0,1", "strategy=choice(fedavg,fed_sb)", "adapter.r=range(4,6)", "name='a,b'"])
    assert len(jobs) == 8
    assert jobs[0] == ["seed=0", "strategy=fedavg", "adapter.r=4", "name='a,b'"]
    assert jobs[1] == ["seed=0", "strategy=fedavg", "adapter.r=5", "name='a,b'"]
    assert jobs[-1] == ["seed=1", "strategy=fed_sb", "adapter.r=5", "name='a,b'"]


def test_a_sweep_over_a_group_by_glob() -> None:
    assert ["strategy=ffa_lora"] in expand_sweep(["strategy=glob(*)"])


def test_an_interval_cannot_be_counted_out() -> None:
    with pytest.raises(ConfigError, match=r"interval.*range\(start,stop,step\)"):
        expand_sweep(["train.lr=interval(0.1,1)"])


def test_a_sweep_composes_each_job() -> None:
    jobs = compose_sweep(["seed=0,1", "strategy=fedavg,fed_sb", "train.threads=null"])
    assert [(config.seed, config.strategy.name, config.adapter.r) for _, config in jobs] == [
        *((0, "fedavg", 8), (0, "fed_sb", 64)),
        *((1, "fedavg", 8), (1, "fed_sb", 64)),
    ]
    assert all(config.train.threads is None for _, config in jobs)


def test_a_sweep_reports_each_mistake_once() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_sweep(["seed=0,1,2", "adapter.r=0,8", "train.lrr=1"])
    assert len(caught.value.problems) == 2


def test_runs_of_a_sweep_cannot_share_a_folder() -> None:
    with pytest.raises(ConfigError, match="cannot share a folder"):
        compose_sweep(["seed=0,1", "output=x"])


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${seed}", "{_target_: os.system}"])
def test_json_from_a_network_is_never_interpreted(value: str) -> None:
    plain = compose([]).model_copy(update={"name": value}).model_dump_json()
    assert RunConfig.model_validate_json(plain).name == value


def test_a_target_in_json_from_a_network_is_an_unknown_key() -> None:
    plain = compose([]).model_dump_json().replace('"seed":0', '"seed":0,"_target_":"os.system"')
    with pytest.raises(ValueError, match=r"_target_\s+Extra inputs are not permitted"):
        RunConfig.model_validate_json(plain)
